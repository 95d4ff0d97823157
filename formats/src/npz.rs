//! Arrays inside `.npz` archives, as numpy's `savez` and `savez_compressed` write them.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use crate::{Result, invalid, io};

/// The bytes of the `.npy` at `path`, which may also be `FILE.npz:NAME`, or `FILE.npz` if that holds a single array.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let Some((archive, name)) = parse(path) else {
        return std::fs::read(path).map_err(io(path));
    };
    let bytes = std::fs::read(&archive).map_err(io(&archive))?;
    let damaged = |e: &dyn std::fmt::Display| invalid(&archive, format!("is not a .npz archive: {e}"));
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| damaged(&e))?;
    let held: Vec<String> =
        zip.file_names().flatten().filter_map(|n| n.strip_suffix(".npy").map(str::to_owned)).collect();
    let name = match (name, held.as_slice()) {
        (Some(name), _) if held.contains(&name) => name,
        (Some(name), _) => {
            return Err(invalid(&archive, format!("holds no array {name}; it has {}", held.join(","))));
        }
        (None, [only]) => only.clone(),
        (None, _) => {
            let shown = archive.display();
            let reason = format!("holds {} arrays ({}); name one as {shown}:NAME", held.len(), held.join(","));
            return Err(invalid(&archive, reason));
        }
    };
    let mut array = Vec::new();
    let mut entry = zip.by_name(&format!("{name}.npy")).map_err(|e| damaged(&e))?;
    entry.read_to_end(&mut array).map_err(|e| invalid(&archive, format!("array {name} is damaged: {e}")))?;
    Ok(array)
}

/// Archive and name; nothing if the path leads to a plain file.
fn parse(path: &Path) -> Option<(PathBuf, Option<String>)> {
    let text = path.to_str()?;
    if text.ends_with(".npz") {
        return Some((path.to_owned(), None));
    }
    let at = text.rfind(".npz:")?;
    (!path.exists()).then(|| (text[..at + 4].into(), Some(text[at + 5..].to_owned())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{Tiles, Values, read_integers, read_values};

    /// Written by numpy: see the folder's script.
    fn path(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npz").join(name)
    }

    #[test]
    fn arrays_are_those_that_numpy_wrote() {
        for file in ["plain.npz", "compressed.npz"] {
            let tiles = Tiles::read(&path(&format!("{file}:tiles"))).unwrap();
            assert_eq!(tiles.shape, [2, 3, 2, 2]);
            assert_eq!((0..24).map(|i| tiles.tile(i / 12).value(i % 12).unwrap()).collect::<Vec<_>>(), {
                (0..24).map(|i| (100 * i) as f32).collect::<Vec<_>>()
            });
            assert_eq!(read_integers(&path(&format!("{file}:labels"))).unwrap(), [3, -1]);
            let heights = read_values(&path(&format!("{file}:heights"))).unwrap();
            assert_eq!(heights, (vec![1, 2], Values::Floats(vec![0.5, -2.25])));
        }
        assert_eq!(read_integers(&path("single.npz")).unwrap(), [7]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = |name: &str| read_integers(&path(name)).unwrap_err().to_string();
        assert!(error("plain.npz:height").contains("no array height; it has tiles,labels,heights"));
        assert!(error("plain.npz").contains("holds 3 arrays"));
        assert!(error("absent.npz:a").contains("absent.npz"));
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(path("compressed.npz")).unwrap();
        let cut = dir.path().join("cut.npz");
        for length in [0, 30, bytes.len() / 2, bytes.len() - 5] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            assert!(read_integers(&cut).unwrap_err().to_string().contains("cut.npz: is not a .npz archive"));
        }
        let mut changed = bytes.clone();
        changed[60] ^= 0xff;
        std::fs::write(&cut, &changed).unwrap();
        let name = cut.to_str().unwrap().to_owned() + ":tiles";
        assert!(Tiles::read(Path::new(&name)).unwrap_err().to_string().contains("cut.npz"));
    }
}

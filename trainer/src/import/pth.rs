//! PyTorch's files: a zip archive with a pickle that describes the tensors and one entry for every storage.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use half::{bf16, f16};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value};
use super::source::{Entry, Source};

/// The longest pickle that is read, in bytes. That of MMEarth's largest checkpoint has some hundred thousand.
const MAX_PICKLE: u64 = 64 << 20;
/// Where a checkpoint may keep the model's tensors, in this order; else they are the file itself.
const KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

/// Reads the model's tensors, as f32. Tensors that share a storage in the file share their values here.
pub(super) fn read(path: &Path) -> Result<Source> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| {
        anyhow!("is no whole zip archive ({e}); a file that torch wrote before 1.6 must be saved again by a newer one")
    })?;
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.map(|n| n.into_owned()))
        .collect::<Result<_, _>>()
        .context("has entries without a proper name")?;
    let pickles: Vec<_> = names.iter().filter_map(|name| name.strip_suffix("data.pkl")).collect();
    let [root] = pickles[..] else { bail!("holds {} entries data.pkl, PyTorch writes one", pickles.len()) };
    let order = format!("{root}byteorder");
    if names.contains(&order) {
        let order = contents(&mut archive, &order, 16)?;
        ensure!(order == b"little", "has the byte order {:?}, expected little", String::from_utf8_lossy(&order));
    }
    let pickle = contents(&mut archive, &format!("{root}data.pkl"), MAX_PICKLE)?;
    let pickle = Pickle::read(&pickle).map_err(|e| anyhow!("its pickle is damaged: {e}"))?;
    let state = state_dictionary(&pickle)?;
    let mut reader = Storages { archive, root, pickle: &pickle, loaded: HashMap::new() };
    let mut entries = Vec::new();
    let Value::Dict(items) = pickle.get(state) else { bail!("holds no dictionary of tensors") };
    for (key, value) in items {
        let Some(name) = pickle.text(*key) else { bail!("a tensor's name is {}", pickle.describe(*key)) };
        let entry = reader.tensor(name, *value).with_context(|| format!("tensor {name}"))?;
        entries.push(entry);
    }
    Ok(Source { entries })
}

/// The dictionary of tensors.
fn state_dictionary(pickle: &Pickle) -> Result<Id> {
    let root = pickle.root();
    ensure!(
        matches!(pickle.get(root), Value::Dict(_)),
        "its pickle holds {}, expected a dictionary of tensors",
        pickle.describe(root)
    );
    let found = KEYS.iter().find_map(|key| pickle.entry(root, key).map(|id| (key, id)));
    match found {
        Some((_, id)) if matches!(pickle.get(id), Value::Dict(_)) => Ok(id),
        Some((key, id)) => bail!("its entry {key:?} is {}, expected a dictionary of tensors", pickle.describe(id)),
        None => Ok(root),
    }
}

/// An entry of the archive as it is stored; it may have at most `limit` bytes.
fn contents<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let entry = archive.by_name(name).with_context(|| format!("entry {name}"))?;
    ensure!(entry.compression() == CompressionMethod::Stored, "entry {name} is compressed; PyTorch stores it plainly");
    ensure!(entry.size() <= limit, "entry {name} has {} bytes, at most {limit} are possible", entry.size());
    let mut bytes = Vec::new();
    // One more than there may be: the checksum is looked at where the entry ends.
    entry.take(limit.saturating_add(1)).read_to_end(&mut bytes).with_context(|| format!("entry {name} is damaged"))?;
    Ok(bytes)
}

struct Storages<'a, R> {
    archive: ZipArchive<R>,
    root: &'a str,
    pickle: &'a Pickle,
    loaded: HashMap<(String, usize, Vec<usize>, Vec<usize>), Arc<[f32]>>,
}

impl<R: Read + Seek> Storages<'_, R> {
    fn tensor(&mut self, name: &str, id: Id) -> Result<Entry> {
        let pickle = self.pickle;
        let (function, arguments) =
            pickle.call(id).with_context(|| format!("is {}, expected a tensor", pickle.describe(id)))?;
        match (function, arguments) {
            ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                let offset = pickle.int(*offset).context("has no proper offset")?;
                let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
                self.view(name, *storage, offset, shape, strides)
            }
            ("torch._utils._rebuild_parameter", [data, ..])
                if pickle.call(*data).is_some_and(|(f, _)| f != function) =>
            {
                self.tensor(name, *data)
            }
            _ => bail!("is {}, expected a tensor", pickle.describe(id)),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        let sizes = self.pickle.elements(id).iter().map(|id| self.pickle.int(*id)).collect::<Option<Vec<_>>>();
        sizes.filter(|s| s.len() <= 8).context("has no proper shape or strides")
    }

    fn view(
        &mut self,
        name: &str,
        storage: Id,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Entry> {
        let pickle = self.pickle;
        let Value::Persistent(storage) = pickle.get(storage) else { bail!("has no storage") };
        let [_, kind, key, _, elements] = pickle.elements(*storage) else { bail!("has no proper storage") };
        let (Value::Global(kind), Some(key), Some(elements)) =
            (pickle.get(*kind), pickle.text(*key), pickle.int(*elements))
        else {
            bail!("has no proper storage")
        };
        ensure!(shape.len() == strides.len(), "has shape {shape:?} and strides {strides:?}");
        // Every element counts, and the last one must lie in the storage; a tensor larger than that repeats elements.
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).context("is too large")?;
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (d, s)| at.checked_add(d.saturating_sub(1).checked_mul(*s)?));
        ensure!(
            count <= elements && (count == 0 || last.is_some_and(|last| last < elements)),
            "has shape {shape:?} and strides {strides:?} from element {offset} on in a storage of {elements}"
        );
        let known = (key.to_owned(), offset, shape, strides);
        if let Some(data) = self.loaded.get(&known) {
            return Ok(Entry { name: name.to_owned(), shape: known.2, data: Arc::clone(data) });
        }
        let (width, convert) = conversion(kind)?;
        let path = format!("{}data/{key}", self.root);
        let expected = elements.checked_mul(width).context("is too large")? as u64;
        let bytes = contents(&mut self.archive, &path, expected)?;
        ensure!(bytes.len() as u64 == expected, "entry {path} has {} bytes, expected {expected}", bytes.len());
        let (_, _, shape, strides) = &known;
        let element = |index: usize| {
            let (mut rest, mut at) = (index, offset);
            for (d, s) in shape.iter().zip(strides).rev() {
                at += rest % d * s;
                rest /= d;
            }
            convert(&bytes[at * width..][..width])
        };
        let data: Arc<[f32]> = (0..count).map(element).collect();
        let entry = Entry { name: name.to_owned(), shape: shape.clone(), data: Arc::clone(&data) };
        self.loaded.insert(known, data);
        Ok(entry)
    }
}

/// Bytes of an element of a kind of storage, and how it becomes an f32.
fn conversion(kind: &str) -> Result<(usize, fn(&[u8]) -> f32)> {
    Ok(match kind {
        "torch.FloatStorage" => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        "torch.HalfStorage" => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        "torch.BFloat16Storage" => (2, |b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        "torch.DoubleStorage" => (8, |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32),
        other => bail!("has elements of {other}, expected floating-point numbers"),
    })
}

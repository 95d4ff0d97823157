//! Whole files: read into aligned memory, written so that an interruption loses nothing.

use std::io::Write;
use std::path::Path;

use crate::{Error, Result, io};

/// Alignment of a model file's sections.
const ALIGNMENT: usize = 64;

/// A byte buffer that starts at a multiple of 64, so that a `.nadir` file's sections can be read in place.
pub struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let storage = vec![0u8; len + ALIGNMENT - 1];
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        Self { storage, start, len }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut new = Self::zeroed(bytes.len());
        new.copy_from_slice(bytes);
        new
    }

    /// A whole file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::copy_of(&std::fs::read(path).map_err(io(path))?))
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// Writes `bytes` beside `path` and renames: a reader sees the old file or the whole new one, also after a crash or on a full disk.
///
/// # Errors
/// If `path` is not a file's name, or the system refuses; then the old file, if any, is as it was.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::Invalid { path: path.to_owned(), reason: "is not a file name".into() })?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(beside);
    let written = std::fs::File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| std::fs::rename(&part, path));
    done.map_err(|source| {
        let _ = std::fs::remove_file(&part);
        Error::Io { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for len in [0, 1, 63, 64, 1000] {
            let buffer = AlignedBytes::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"old").unwrap();
        assert!(write_atomic(&dir.path().join("missing/file"), b"new").is_err());
        // Something stands where the new bytes would be written first.
        let beside = dir.path().join(format!("file.{}.part", std::process::id()));
        std::fs::create_dir(&beside).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("file: "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        std::fs::remove_dir(&beside).unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

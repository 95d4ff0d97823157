//! Memory that a delta changes: flash, or anything that keeps bytes.

use embedded_storage::nor_flash::NorFlash;

/// What a device said when it could not read, erase or write: its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device said {0}")]
pub struct StorageError(pub i32);

/// Memory by pages, as NOR flash has it: erased a page at a time, then written.
///
/// What is asked for is always within [`Storage::bytes`]; [`Storage::erase`] is given the start of a page, [`Storage::write`] multiples of 64 bytes
/// in erased memory. Cutting the power in an erase or a write may leave anything in that page, and must not change another.
pub trait Storage {
    /// Length of the memory.
    fn bytes(&self) -> usize;

    /// Bytes that are erased together: a multiple of 64.
    fn page_bytes(&self) -> usize;

    /// Reads from `offset` on.
    ///
    /// # Errors
    /// If the device cannot.
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError>;

    /// Erases the page that begins at `offset`.
    ///
    /// # Errors
    /// If the device cannot.
    fn erase(&mut self, offset: usize) -> Result<(), StorageError>;

    /// Writes to erased memory; when it returns, the bytes are there to stay.
    ///
    /// # Errors
    /// If the device cannot.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError>;
}

impl<S: Storage> Storage for &mut S {
    fn bytes(&self) -> usize {
        (**self).bytes()
    }

    fn page_bytes(&self) -> usize {
        (**self).page_bytes()
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError> {
        (**self).read(offset, bytes)
    }

    fn erase(&mut self, offset: usize) -> Result<(), StorageError> {
        (**self).erase(offset)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError> {
        (**self).write(offset, bytes)
    }
}

/// Memory that can be written byte by byte: RAM, FRAM, MRAM.
#[derive(Debug)]
pub struct Memory<'a> {
    bytes: &'a mut [u8],
    page_bytes: usize,
}

impl<'a> Memory<'a> {
    /// The memory `bytes`, changed in pages of `page_bytes`.
    pub fn new(bytes: &'a mut [u8], page_bytes: usize) -> Self {
        Self { bytes, page_bytes }
    }

    fn part(&mut self, offset: usize, length: usize) -> Result<&mut [u8], StorageError> {
        let end = offset.checked_add(length);
        end.and_then(|end| self.bytes.get_mut(offset..end)).ok_or(StorageError(-1))
    }
}

/// Copies one slice into another of the same length.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

impl Storage for Memory<'_> {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError> {
        copy(bytes, self.part(offset, bytes.len())?);
        Ok(())
    }

    fn erase(&mut self, offset: usize) -> Result<(), StorageError> {
        self.part(offset, self.page_bytes)?.fill(0xff);
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError> {
        copy(self.part(offset, bytes.len())?, bytes);
        Ok(())
    }
}

/// A flash driver of embedded-storage, from `start` on.
#[derive(Debug)]
pub struct Nor<F> {
    flash: F,
    start: u32,
    bytes: u32,
}

impl<F: NorFlash> Nor<F> {
    /// The `bytes` bytes from `start` of a flash; both are multiples of its page, which is a multiple of 64 bytes, as 64 is of what it reads and writes at once.
    pub fn new(flash: F, start: u32, bytes: u32) -> Self {
        const { assert!(F::ERASE_SIZE.is_multiple_of(64) && 64 % F::WRITE_SIZE == 0 && F::READ_SIZE == 1) };
        Self { flash, start, bytes }
    }

    fn at(&self, offset: usize) -> Result<u32, StorageError> {
        u32::try_from(offset).ok().and_then(|offset| self.start.checked_add(offset)).ok_or(StorageError(-1))
    }
}

/// The driver's error as a number.
fn number(error: impl embedded_storage::nor_flash::NorFlashError) -> StorageError {
    use embedded_storage::nor_flash::NorFlashErrorKind::{NotAligned, OutOfBounds};
    StorageError(match error.kind() {
        OutOfBounds => -1,
        NotAligned => -2,
        _ => -3,
    })
}

impl<F: NorFlash> Storage for Nor<F> {
    fn bytes(&self) -> usize {
        self.bytes as usize
    }

    fn page_bytes(&self) -> usize {
        F::ERASE_SIZE
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError> {
        let at = self.at(offset)?;
        self.flash.read(at, bytes).map_err(number)
    }

    fn erase(&mut self, offset: usize) -> Result<(), StorageError> {
        let (from, to) = (self.at(offset)?, self.at(offset.saturating_add(F::ERASE_SIZE))?);
        self.flash.erase(from, to).map_err(number)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let at = self.at(offset)?;
        self.flash.write(at, bytes).map_err(number)
    }
}

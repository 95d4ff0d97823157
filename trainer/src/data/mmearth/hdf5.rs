//! Rows of the datasets at the root of an HDF5 file.
//!
//! The crate `hdf5-reader` opens the file and knows its structures. Its own slices walk a dataset's whole chunk index for each
//! row, which is far too much for a million chunks; here the B-tree is descended to the one chunk that holds the row. Reads are
//! positioned (`pread`), so threads share a file without a lock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdf5_reader::btree_v1::{BTreeV1Key, BTreeV1Node};
use hdf5_reader::filters::{FILTER_DEFLATE, apply_pipeline_with_limit};
use hdf5_reader::io::Cursor;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::filter_pipeline::FilterDescription;
use hdf5_reader::messages::layout::DataLayout;
use hdf5_reader::{ByteOrder, Dataset, Datatype, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem, StringSize};

use super::array::{ArrayInfo, Element, RecordField};

/// Deeper B-trees than this hold more chunks than a file has bytes.
const MAX_DEPTH: usize = 16;
/// Larger chunks are left to the library, which refuses those that are beyond reason.
const MAX_CHUNK: usize = 1 << 28;

/// An open HDF5 file whose root datasets all have one row a tile.
pub(super) struct Hdf5 {
    path: PathBuf,
    file: Hdf5File,
    arrays: BTreeMap<String, Array>,
    unread: BTreeMap<String, anyhow::Error>,
}

struct Array {
    info: ArrayInfo,
    dataset: Dataset,
    layout: Layout,
}

/// Where a row's bytes are.
enum Layout {
    /// One after the other from an address.
    Contiguous { address: u64 },
    /// In chunks of whole rows, found through a B-tree of version 1.
    RowChunks { root: u64, rows: u64, filters: Vec<FilterDescription> },
    /// Anything else that HDF5 can hold; slow, as the library looks through the whole index for each row.
    Other,
}

impl Hdf5 {
    /// Opens the file and reads the headers of its root datasets.
    ///
    /// Fails if it is not HDF5, or shorter than it says. Datasets that cannot be read as rows are kept apart, with the reason.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let length = std::fs::metadata(path).with_context(|| shown.to_string())?.len();
        // Each row is read once; a cache of chunks would only cost memory.
        let options = OpenOptions { chunk_cache_bytes: 0, ..OpenOptions::default() };
        let file = Hdf5File::open_with_options(path, options)
            .map_err(|e| anyhow!("{shown}: is not a whole HDF5 file: {e} (it has {length} bytes)"))?;
        let block = file.superblock();
        let expected = block.eof_address.saturating_add(block.base_address);
        ensure!(length >= expected, "{shown}: is cut off: it has {length} bytes, its header says {expected}");
        let datasets = file
            .root_group()
            .and_then(|root| root.datasets())
            .map_err(|e| anyhow!("{shown}: the list of datasets is damaged or was never finished: {e}"))?;
        ensure!(!datasets.is_empty(), "{shown}: holds no dataset; was it written to the end?");
        let (mut arrays, mut unread) = (BTreeMap::new(), BTreeMap::new());
        for dataset in datasets {
            let name = dataset.name().trim_start_matches('/').to_owned();
            match Array::new(&file, dataset) {
                Ok(array) => drop(arrays.insert(name, array)),
                Err(reason) => drop(unread.insert(name, reason)),
            }
        }
        Ok(Self { path: path.to_owned(), file, arrays, unread })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if a dataset is there that cannot be read, and `wanted` says yes to its name.
    pub(super) fn check_unread(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let first = self.unread.iter().find(|(name, _)| wanted(name));
        first.map_or(Ok(()), |(name, reason)| bail!("{}: dataset {name}: {reason:#}", self.path.display()))
    }

    pub(super) fn arrays(&self) -> BTreeMap<String, ArrayInfo> {
        self.arrays.iter().map(|(name, array)| (name.clone(), array.info.clone())).collect()
    }

    /// Puts the little-endian bytes of one row into `out`.
    pub(super) fn read_row(&self, name: &str, row: usize, out: &mut Vec<u8>) -> Result<()> {
        let context = || format!("{}: dataset {name}, row {row}", self.path.display());
        let array = self.arrays.get(name).with_context(|| context() + ": there is no such dataset")?;
        self.row(array, row, out).with_context(context)
    }

    fn row(&self, array: &Array, row: usize, out: &mut Vec<u8>) -> Result<()> {
        ensure!(row < array.info.rows, "is not below the number of rows, {}", array.info.rows);
        let bytes = array.info.row_bytes();
        match &array.layout {
            Layout::Contiguous { address } => {
                let at = address.checked_add((row * bytes) as u64).context("the address is damaged")?;
                out.clear();
                out.extend_from_slice(&self.file.storage().read_range(at, bytes)?);
            }
            Layout::RowChunks { root, rows, filters } => {
                let first = row as u64 / rows * rows;
                let chunk = self.find_chunk(*root, first, array.info.row_shape.len() + 1)?;
                let chunk = chunk.context("was never written; the file is only half finished")?;
                let raw = self.file.storage().read_range(chunk.address, chunk.size as usize)?;
                let size = *rows as usize * bytes;
                decode(&raw, filters, chunk.filter_mask, array.info.element.size(), size, out)?;
                if *rows > 1 {
                    let start = (row as u64 - first) as usize * bytes;
                    out.copy_within(start..start + bytes, 0);
                    out.truncate(bytes);
                }
            }
            Layout::Other => *out = array.slice(row)?,
        }
        ensure!(out.len() == bytes, "holds {} bytes, expected {bytes}", out.len());
        Ok(())
    }

    /// The chunk that starts at row `first`, if it was written.
    fn find_chunk(&self, root: u64, first: u64, dimensions: usize) -> Result<Option<Chunk>> {
        let block = self.file.superblock();
        let mut address = root;
        for _ in 0..MAX_DEPTH {
            if address == undefined(block.offset_size) {
                return Ok(None);
            }
            let head_size = 8 + 2 * usize::from(block.offset_size);
            let head = self.file.storage().read_range(address, head_size)?;
            let children = usize::from(u16::from_le_bytes([head[6], head[7]]));
            let key = 8 + (dimensions + 1) * 8;
            let size = head_size + (children + 1) * key + children * usize::from(block.offset_size);
            let bytes = self.file.storage().read_range(address, size)?;
            let mut cursor = Cursor::new(&bytes);
            let node = BTreeV1Node::parse(&mut cursor, block.offset_size, block.length_size, Some(dimensions as u32))?;
            let start = |key: &BTreeV1Key| match key {
                BTreeV1Key::RawData { offsets, .. } => offsets.first().copied(),
                BTreeV1Key::Group { .. } => None,
            };
            // The last child whose first chunk is not after the wanted one.
            let after = node.keys[..children].partition_point(|key| start(key).is_some_and(|at| at <= first));
            let Some(at) = after.checked_sub(1) else {
                return Ok(None);
            };
            if node.level == 0 {
                let BTreeV1Key::RawData { chunk_size, filter_mask, .. } = &node.keys[at] else {
                    bail!("the chunk index is damaged");
                };
                let found = start(&node.keys[at]) == Some(first);
                let chunk = Chunk { address: node.children[at], size: *chunk_size, filter_mask: *filter_mask };
                return Ok(found.then_some(chunk));
            }
            address = node.children[at];
        }
        bail!("the chunk index is damaged: it is deeper than {MAX_DEPTH}")
    }

    /// All rows of an array, one after the other.
    pub(super) fn read_all(&self, name: &str) -> Result<Vec<u8>> {
        let context = || format!("{}: dataset {name}", self.path.display());
        let array = self.arrays.get(name).with_context(|| context() + ": there is no such dataset")?;
        array.dataset.read_raw_bytes().with_context(context)
    }
}

struct Chunk {
    address: u64,
    size: u32,
    filter_mask: u32,
}

/// HDF5's address for "nowhere".
fn undefined(offset_size: u8) -> u64 {
    if offset_size >= 8 { u64::MAX } else { (1 << (8 * offset_size)) - 1 }
}

thread_local! {
    static INFLATE: RefCell<libdeflater::Decompressor> = RefCell::new(libdeflater::Decompressor::new());
}

/// Undoes a chunk's filters; the result must have `size` bytes.
fn decode(
    raw: &[u8],
    filters: &[FilterDescription],
    mask: u32,
    element: usize,
    size: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.clear();
    match filters {
        [] => out.extend_from_slice(raw),
        [one] if one.id == FILTER_DEFLATE && mask == 0 => {
            out.resize(size, 0);
            let written = INFLATE.with_borrow_mut(|inflate| inflate.zlib_decompress(raw, out));
            out.truncate(written.map_err(|e| anyhow!("the compressed chunk is damaged: {e}"))?);
        }
        _ => *out = apply_pipeline_with_limit(raw, filters, mask, element, None, Some(size + 1))?,
    }
    ensure!(out.len() == size, "the chunk holds {} bytes, expected {size}", out.len());
    Ok(())
}

impl Array {
    fn new(file: &Hdf5File, dataset: Dataset) -> Result<Self> {
        let element = element(dataset.dtype())?;
        let shape: Vec<usize> = dataset.shape().iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
        let (&rows, row_shape) = shape.split_first().context("is a single value, expected one row a tile")?;
        let info = ArrayInfo { element, rows, row_shape: row_shape.to_vec() };
        let values = row_shape.iter().try_fold(info.element.size(), |n, &d| n.checked_mul(d));
        let fits = values.and_then(|n| n.checked_mul(rows)).is_some_and(|n| n < isize::MAX as usize);
        ensure!(fits, "has the impossible shape {shape:?}");
        let header = file.get_or_parse_header(dataset.address())?;
        let mut layout = None;
        let mut filters = Vec::new();
        for message in &header.messages {
            match message {
                HdfMessage::DataLayout(message) => layout = Some(message.layout.clone()),
                HdfMessage::FilterPipeline(message) => filters = message.filters.clone(),
                _ => {}
            }
        }
        let nowhere = undefined(file.superblock().offset_size);
        let layout = match layout {
            Some(DataLayout::Contiguous { address, .. }) => {
                ensure!(address != nowhere || rows == 0, "was never written");
                Layout::Contiguous { address }
            }
            Some(DataLayout::Chunked { address, dims, chunk_indexing: None, .. }) => {
                let whole =
                    dims.len() == shape.len() && dims[1..].iter().zip(row_shape).all(|(&c, &d)| c as usize == d);
                let bytes = info.row_bytes().checked_mul(dims.first().map_or(0, |&rows| rows as usize));
                if whole && bytes.is_some_and(|n| (1..=MAX_CHUNK).contains(&n)) {
                    Layout::RowChunks { root: address, rows: u64::from(dims[0]), filters }
                } else {
                    Layout::Other
                }
            }
            _ => Layout::Other,
        };
        Ok(Self { info, dataset, layout })
    }

    fn slice(&self, row: usize) -> Result<Vec<u8>> {
        let mut selection = SliceInfo::all(self.info.row_shape.len() + 1);
        selection.selections[0] = SliceInfoElem::Slice { start: row as u64, end: row as u64 + 1, step: 1 };
        macro_rules! bytes {
            ($type:ty) => {
                self.dataset.read_slice::<$type>(&selection)?.iter().flat_map(|v| v.to_le_bytes()).collect()
            };
        }
        Ok(match self.info.element {
            Element::U8 => bytes!(u8),
            Element::I8 => bytes!(i8),
            Element::U16 => bytes!(u16),
            Element::I16 => bytes!(i16),
            Element::F32 => bytes!(f32),
            Element::Record { .. } => {
                let size = self.info.row_bytes();
                self.dataset.read_raw_bytes()?[row * size..][..size].to_vec()
            }
        })
    }
}

fn element(datatype: &Datatype) -> Result<Element> {
    let little = |order: &ByteOrder, size: u8| *order == ByteOrder::LittleEndian || size == 1;
    Ok(match datatype {
        Datatype::FixedPoint { size: size @ (1 | 2), signed, byte_order } if little(byte_order, *size) => {
            match (size, signed) {
                (1, false) => Element::U8,
                (1, true) => Element::I8,
                (_, false) => Element::U16,
                (_, true) => Element::I16,
            }
        }
        Datatype::FloatingPoint { size: 4, byte_order } if little(byte_order, 4) => Element::F32,
        Datatype::Compound { size, fields } => {
            let size = *size as usize;
            let mut strings = Vec::new();
            for field in fields {
                let Datatype::String { size: StringSize::Fixed(length), .. } = &field.datatype else { continue };
                let (offset, length) = (field.byte_offset as usize, *length as usize);
                ensure!(offset + length <= size, "field {} lies outside the record", field.name);
                strings.push(RecordField { name: field.name.clone(), offset, size: length });
            }
            Element::Record { size, strings }
        }
        other => bail!("has type {other:?}, expected little-endian u8, i8, u16, i16, f32 or a record"),
    })
}

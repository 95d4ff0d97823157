//! Models without meaning for the tests of this crate, which knows no quantizer: right in every length and range, any values.
extern crate std;

use std::ops::Deref;
use std::sync::OnceLock;
use std::vec;
use std::vec::Vec;

use super::*;

/// Bytes that begin at a multiple of 64.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes of `fill`.
    pub(crate) fn filled(len: usize, fill: u8) -> Self {
        let memory = vec![fill; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::filled(bytes.len(), 0);
        copy.bytes_mut().copy_from_slice(bytes);
        copy
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

/// The smallest model of a precision that has every kind of layer: tiles of 16 x 16 pixels, bands B4 and B3.
pub(crate) fn tiny(precision: Precision) -> Aligned {
    // Made once: finding the constants takes Miri long.
    static FILES: [OnceLock<Aligned>; 3] = [const { OnceLock::new() }; 3];
    Aligned::copy_of(FILES[precision as usize].get_or_init(|| make(header(precision, StemPadding::Same))))
}

/// [`tiny`] with a patchify stem.
pub(crate) fn tiny_patchify(precision: Precision) -> Aligned {
    make(header(precision, StemPadding::Patchify))
}

fn header(precision: Precision, stem_padding: StemPadding) -> Header<'static> {
    let architecture = Architecture {
        tile_size: 16,
        patch_size: 8,
        stem_padding,
        depths: [1; STAGES],
        dims: [6, 8, 8, 7],
        grn_eps: 1e-6,
        ln_eps: 1e-6,
    };
    let band = |name: &str| Band {
        name: name.try_into().unwrap(),
        unit: "grey level".try_into().unwrap(),
        mean: 90.0,
        std: 40.0,
        no_data: Some(0.0),
        saturation: None,
    };
    Header {
        name: "tiny",
        embedding_space: "nowhere",
        model_version: 3,
        precision,
        architecture,
        embedding_dimension: architecture.embedding_dimension() as u16,
        bands: [band("B4"), band("B3")].into_iter().collect(),
        provenance: Provenance::default(),
    }
}

fn make(header: Header<'_>) -> Aligned {
    let precision = header.precision;
    let specs: Vec<SectionSpec> =
        (0..).map_while(|i| expected_section(&header.architecture, 2, precision, i)).collect();
    let mut random = crate::triage::test_random::Random(7);
    let mut sections: Vec<Section> =
        specs.iter().map(|spec| (KIND_TENSOR, spec.dtype, values(spec, &mut random))).collect();
    // Constants begin as ones; those that must be large are found by the check, and are the same for all units of a kind.
    loop {
        let bytes = Aligned::copy_of(&file(&header, &sections, false, |_| 0));
        let model = parse_head(&bytes).unwrap();
        match if precision == Precision::Int8 { int8_layout::check(&model) } else { Ok(()) } {
            Ok(()) => return Aligned::copy_of(&file(&header, &sections, false, crc32c)),
            Err(ModelError::OutOfRange { index, element, .. }) => {
                let like = |spec: &SectionSpec| (spec.name, spec.elements);
                for (spec, (_, _, section)) in specs.iter().zip(&mut sections) {
                    if like(spec) == like(&specs[index]) {
                        let place = &mut section[4 * element..4 * element + 4];
                        assert_eq!(place, 1i32.to_le_bytes(), "element {element} of {spec} is large already");
                        place.copy_from_slice(&(1i32 << 28).to_le_bytes());
                    }
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// [`tiny`] in int8 with what a file may have besides: block CRCs, a self-test, products of 3 components, the signature that `sign` gives for a message, parity.
pub(crate) fn equipped(self_test: &[u8], sign: impl Fn(&Model<'_>) -> [u8; SIGNATURE_BYTES]) -> Aligned {
    let plain = tiny(Precision::Int8);
    let model = Model::parse(&plain).unwrap();
    let mut sections: Vec<Section> = (0..model.section_count())
        .map(|i| (KIND_TENSOR, model.section_entry(i).unwrap().dtype, model.section_bytes(i).to_vec()))
        .collect();
    let blocks = plain[model.tensor_range()].chunks(BLOCK_BYTES).flat_map(|block| crc32c(block).to_le_bytes());
    sections.push((KIND_BLOCKS, Dtype::I32, blocks.collect()));
    sections.push((KIND_SELF_TEST, Dtype::I8, self_test.to_vec()));
    sections.push((KIND_PRODUCTS, Dtype::I8, products(model.embedding_dimension(), 3)));
    sections.push((KIND_SIGNATURE, Dtype::I8, vec![0; SIGNATURE_BYTES]));
    let header = header(Precision::Int8, StemPadding::Same);
    let unsigned = Aligned::copy_of(&file(&header, &sections, true, crc32c));
    sections.last_mut().unwrap().2 = sign(&Model::parse(&unsigned).unwrap()).to_vec();
    Aligned::copy_of(&file(&header, &sections, true, crc32c))
}

/// Products that differ from number to number.
fn products(dimension: usize, components: usize) -> Vec<u8> {
    let mut bytes = Vec::from(10u32.to_le_bytes());
    bytes.extend((0..dimension).flat_map(|d| (1u32 << 22 | d as u32).to_le_bytes()));
    bytes.extend((0..components).flat_map(|j| (1u32 << 23 | j as u32).to_le_bytes()));
    bytes.extend((0..dimension).flat_map(|d| (50 * d as i16).to_le_bytes()));
    bytes.extend((0..dimension * components).map(|i| (i * 37 % 255) as u8));
    bytes
}

/// 32 random values over and over: Miri is slow at making them.
fn values(spec: &SectionSpec, random: &mut crate::triage::test_random::Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..32 {
        let bits = if spec.name == "constants" { 1 } else { random.bits() };
        match spec.dtype {
            Dtype::I8 => bytes.push(bits as u8),
            Dtype::F16 => bytes.extend((bits as u16 & 0xbbff).to_le_bytes()),
            // A multiplier or an entry of a GELU table: 0 to 4095.
            Dtype::I16 => bytes.extend((bits as u16 & 0xfff).to_le_bytes()),
            Dtype::F32 => bytes.extend((bits as i8 as f32 / 256.0).to_le_bytes()),
            Dtype::I32 => bytes.extend((bits as i16 as i32).to_le_bytes()),
            Dtype::I64 => bytes.extend((bits as i32 as i64).to_le_bytes()),
        }
    }
    let mut all = bytes.repeat(spec.elements.div_ceil(32));
    all.truncate(spec.elements * spec.dtype.bytes());
    all
}

/// Kind, type and bytes.
type Section = (u8, Dtype, Vec<u8>);

/// Puts a file together, as `docs/model-file.md` says; without CRCs of sections it is quicker made.
fn file(header: &Header<'_>, sections: &[Section], parity: bool, crc: fn(&[u8]) -> u32) -> Vec<u8> {
    let major = if header.architecture.is_patchify() { VERSION_MAJOR_PATCHIFY } else { VERSION_MAJOR };
    let mut buffer = [0; MAX_HEADER];
    let header = postcard::to_slice(header, &mut buffer).unwrap();
    let mut file = Vec::from(MAGIC);
    file.extend(major.to_le_bytes());
    file.extend(VERSION_MINOR.to_le_bytes());
    file.extend((header.len() as u32).to_le_bytes());
    file.extend((sections.len() as u32).to_le_bytes());
    let body: usize = sections.iter().map(|(_, _, s)| s.len().next_multiple_of(ALIGNMENT)).sum();
    let table = (PREFIX_BYTES + header.len()).next_multiple_of(ALIGNMENT);
    let first = (table + sections.len() * ENTRY_BYTES + HEAD_CRC_BYTES).next_multiple_of(ALIGNMENT);
    let data = first + body + END_BYTES;
    file.extend(if parity { [0xff; 4] } else { [0; 4] });
    file.extend((if parity { data / 8 * 9 } else { data } as u64).to_le_bytes());
    file.extend(&*header);
    file.resize(table, 0);
    let mut offset = first;
    for (index, (kind, dtype, section)) in sections.iter().enumerate() {
        file.extend([*kind, *dtype as u8, 0, 0]);
        file.extend((index as u32).to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        file.extend(((section.len() / dtype.bytes()) as u64).to_le_bytes());
        file.extend(crc(section).to_le_bytes());
        file.extend([0; 4]);
        offset += section.len().next_multiple_of(ALIGNMENT);
    }
    let head = crc32c(&file);
    file.extend([0; 4]);
    file.extend(head.to_le_bytes());
    file.resize(first, 0);
    for (_, _, section) in sections {
        file.extend(section);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.extend(crc(&file).to_le_bytes());
    file.resize(data, 0);
    if parity {
        let bytes: Vec<u8> =
            file.as_chunks().0.iter().map(|word| parity::parity_of(u64::from_le_bytes(*word))).collect();
        file.extend(bytes);
    }
    file
}

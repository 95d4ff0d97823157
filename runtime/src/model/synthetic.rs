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

    fn copy_of(bytes: &[u8]) -> Self {
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
    Aligned::copy_of(FILES[precision as usize].get_or_init(|| make(precision)))
}

fn make(precision: Precision) -> Aligned {
    let architecture = Architecture {
        tile_size: 16,
        patch_size: 8,
        stem_padding: StemPadding::Same,
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
    let header = Header {
        name: "tiny",
        embedding_space: "nowhere",
        precision,
        architecture,
        embedding_dimension: architecture.embedding_dimension() as u16,
        bands: [band("B4"), band("B3")].into_iter().collect(),
        provenance: Provenance::default(),
    };
    let specs: Vec<SectionSpec> = (0..).map_while(|i| expected_section(&architecture, 2, precision, i)).collect();
    let mut random = crate::triage::test_random::Random(7);
    let mut sections: Vec<Vec<u8>> = specs.iter().map(|spec| values(spec, &mut random)).collect();
    // Constants begin as ones; those that must be large are found by the check, and are the same for all units of a kind.
    loop {
        let bytes = Aligned::copy_of(&file(&header, &specs, &sections, |_| 0));
        let header_bytes = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let table = &bytes[(PREFIX_BYTES + header_bytes).next_multiple_of(ALIGNMENT)..][..specs.len() * ENTRY_BYTES];
        let model = Model { bytes: &bytes, header: header.clone(), table };
        match if precision == Precision::Int8 { int8_layout::check(&model) } else { Ok(()) } {
            Ok(()) => return Aligned::copy_of(&file(&header, &specs, &sections, crc32c)),
            Err(ModelError::OutOfRange { index, element, .. }) => {
                let like = |spec: &SectionSpec| (spec.name, spec.elements);
                for (spec, section) in specs.iter().zip(&mut sections) {
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

/// Puts a file together, as `docs/model-file.md` says; without CRCs it is quicker made.
fn file(header: &Header<'_>, specs: &[SectionSpec], sections: &[Vec<u8>], crc: fn(&[u8]) -> u32) -> Vec<u8> {
    let mut buffer = [0; MAX_HEADER];
    let header = postcard::to_slice(header, &mut buffer).unwrap();
    let mut file = Vec::from(MAGIC);
    file.extend(VERSION_MAJOR.to_le_bytes());
    file.extend(VERSION_MINOR.to_le_bytes());
    file.extend((header.len() as u32).to_le_bytes());
    file.extend((specs.len() as u32).to_le_bytes());
    let body: usize = sections.iter().map(|s| s.len().next_multiple_of(ALIGNMENT)).sum();
    let table = (PREFIX_BYTES + header.len()).next_multiple_of(ALIGNMENT);
    let first = (table + specs.len() * ENTRY_BYTES + 4).next_multiple_of(ALIGNMENT);
    file.extend([0; 4]);
    file.extend(((first + body + 4) as u64).to_le_bytes());
    file.extend(&*header);
    file.resize(table, 0);
    let mut offset = first;
    for (index, (spec, section)) in specs.iter().zip(sections).enumerate() {
        file.extend([KIND_TENSOR, spec.dtype as u8, 0, 0]);
        file.extend((index as u32).to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        file.extend((spec.elements as u64).to_le_bytes());
        file.extend(crc(section).to_le_bytes());
        file.extend([0; 4]);
        offset += section.len().next_multiple_of(ALIGNMENT);
    }
    file.extend(crc(&file).to_le_bytes());
    file.resize(first, 0);
    for section in sections {
        file.extend(section);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.extend(crc(&file).to_le_bytes());
    file
}

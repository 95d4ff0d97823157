//! The parser of model files: what was written is read back, and nothing else is.

use nadir::encoder::Encoder as Engine;
use nadir::model::int8_layout::{BLOCK_SECTIONS, start};
use nadir::model::{
    ALIGNMENT, Architecture, Dtype, END_BYTES, ENTRY_BYTES, HEAD_CRC_BYTES, Header, KIND_BLOCKS, Model, ModelError,
    PREFIX_BYTES, Place, Precision, StemPadding, crc32c, expected_section,
};
use nadir_formats::{AlignedBytes, Encoder, Tiles};
use nadir_quantize::testing::{Random, raise, random_encoder, random_tiles};
use nadir_quantize::writer::{Section, SectionData, encode, header};
use nadir_quantize::{float, int8};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Int8];

/// As small as an encoder can be with every kind of section.
fn tiny() -> (Encoder, Tiles) {
    let named = Architecture::named("yocto", 16, 8).unwrap();
    let architecture = Architecture { depths: [1, 1, 2, 1], dims: [3, 4, 5, 6], ..named };
    (random_encoder(architecture, &["B4", "B8A"], 5), random_tiles(4, 2, 16, 6))
}

fn file(precision: Precision) -> Vec<u8> {
    let (encoder, tiles) = tiny();
    match precision {
        Precision::Int8 => int8::convert(&encoder, &tiles).unwrap(),
        _ => float::convert(&encoder, precision).unwrap(),
    }
}

fn error(bytes: &[u8]) -> ModelError {
    Model::parse(&AlignedBytes::copy_of(bytes)).unwrap_err()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()) as usize)
}

/// First byte and number of rows of the section table, as the prefix has it; `None` if that is beyond the file.
fn table(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, rows) = (u32_at(bytes, 12), u32_at(bytes, 16));
    let start = PREFIX_BYTES.checked_add(header)?.next_multiple_of(ALIGNMENT);
    (start.checked_add(rows.checked_mul(ENTRY_BYTES)?)?.checked_add(HEAD_CRC_BYTES + END_BYTES)? < bytes.len())
        .then_some((start, rows))
}

/// Makes every checksum right again, and the length, so that the checks behind them are reached.
fn reseal(bytes: &mut [u8]) {
    let length = bytes.len();
    if length < PREFIX_BYTES + END_BYTES {
        return;
    }
    bytes[24..32].copy_from_slice(&(length as u64).to_le_bytes());
    if let Some((start, rows)) = table(bytes) {
        for row in (0..rows).map(|i| start + i * ENTRY_BYTES) {
            let (offset, elements) = (u32_at(bytes, row + 8), u32_at(bytes, row + 16));
            let size = Dtype::from_number(bytes[row + 1]).map_or(0, Dtype::bytes);
            if let Some(data) = bytes.get(offset..offset + elements * size) {
                let crc = crc32c(data);
                bytes[row + 24..row + 28].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let end = start + rows * ENTRY_BYTES;
        let crc = crc32c(&bytes[..end]);
        bytes[end + 4..end + 8].copy_from_slice(&crc.to_le_bytes());
    }
    let end = length - END_BYTES;
    let crc = crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn what_was_written_is_read() {
    let (encoder, _) = tiny();
    for precision in PRECISIONS {
        let bytes = AlignedBytes::copy_of(&file(precision));
        let model = Model::parse(&bytes).unwrap();
        assert_eq!(*model.header(), header(&encoder.card, precision).unwrap());
        assert_eq!((model.name(), model.precision()), ("random-5", precision));
        assert_eq!(model.bands()[1].name, "B8A");
        assert_eq!(model.file_crc() as usize, u32_at(&bytes, bytes.len() - END_BYTES));
        let mut total = 0;
        for index in 0..model.section_count() {
            let (entry, spec) = (model.section_entry(index).unwrap(), model.expected(index).unwrap());
            assert_eq!((entry.dtype, entry.elements, entry.offset % 64), (spec.dtype, spec.elements, 0), "{spec}");
            let bytes_of = match entry.dtype {
                Dtype::F32 => size_of_val(model.section::<f32>(index)),
                Dtype::F16 => size_of_val(model.section::<u16>(index)),
                Dtype::I8 => size_of_val(model.section::<i8>(index)),
                Dtype::I16 => size_of_val(model.section::<i16>(index)),
                Dtype::I32 => size_of_val(model.section::<i32>(index)),
                Dtype::I64 => size_of_val(model.section::<i64>(index)),
            };
            assert_eq!(bytes_of, entry.bytes());
            total += entry.bytes();
        }
        assert!(
            model.expected(model.section_count()).is_none() && model.section_entry(model.section_count()).is_none()
        );
        assert!(total < bytes.len() && model.section::<f32>(model.section_count()).is_empty());
        assert!(model.section::<i64>(0).is_empty(), "another type than the section's gives nothing");
    }
}

#[test]
fn the_first_bytes_are_laid_down() {
    let bytes = file(Precision::F32);
    assert_eq!(bytes[..12], *b"\x89NAD\r\n\x1a\n\x01\x00\x00\x00");
    // CRC-32C of "123456789" is the published check value.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let postcard_name = &bytes[PREFIX_BYTES..PREFIX_BYTES + 9];
    assert_eq!(postcard_name, b"\x08random-5");
}

/// Ten thousand damaged files a precision: nothing panics, and without new checksums nothing passes.
#[test]
fn damaged_files_never_panic() {
    for precision in PRECISIONS {
        let good = file(precision);
        let (_, tiles) = tiny();
        let (table_start, rows) = table(&good).unwrap();
        let data_start = table_start + rows * ENTRY_BYTES + HEAD_CRC_BYTES;
        let mut random = Random::new(11);
        let (mut refused, mut accepted, mut deep) = (0, 0, std::collections::BTreeMap::<String, u32>::new());
        for round in 0..10_000 {
            let mut bytes = good.clone();
            let kind = round % 12;
            let seal = kind >= 5;
            let place = |random: &mut Random, from: usize, to: usize| from + random.below(to - from);
            match kind {
                0 => {
                    let at = random.below(good.len());
                    bytes[at] ^= 1 << random.below(8);
                }
                1 => {
                    for _ in 0..=random.below(6) {
                        let at = random.below(good.len());
                        bytes[at] = random.bits() as u8;
                    }
                }
                2 => bytes.truncate(random.below(good.len())),
                3 => bytes.extend((0..=random.below(200)).map(|_| 0u8)),
                4 => {
                    let at = random.below(good.len() - 64);
                    bytes[at..at + 64].rotate_left(random.below(63) + 1);
                }
                // With right checksums: prefix, header, table, data, length.
                5 => {
                    let at = place(&mut random, 8, PREFIX_BYTES);
                    bytes[at] = random.bits() as u8;
                }
                6 | 7 => {
                    let at = place(&mut random, PREFIX_BYTES, table_start);
                    bytes[at] = if kind == 6 { random.bits() as u8 } else { bytes[at] ^ 1 << random.below(8) };
                }
                8 => {
                    let at = place(&mut random, table_start, data_start);
                    bytes[at] ^= 1 << random.below(8);
                }
                9 => {
                    let at = place(&mut random, data_start, good.len() - 4);
                    bytes[at] = [0x00, 0x7f, 0x80, 0xff, random.bits() as u8][random.below(5)];
                }
                10 => {
                    let at = random.below(good.len());
                    match random.below(3) {
                        0 => bytes.truncate(at / ALIGNMENT * ALIGNMENT),
                        1 => bytes.insert(at, random.bits() as u8),
                        _ => _ = bytes.remove(at),
                    }
                }
                _ => {
                    for _ in 0..8 {
                        let at = place(&mut random, data_start, good.len() - 4);
                        bytes[at..good.len().min(at + 4)].fill(random.bits() as u8);
                    }
                }
            }
            if seal {
                reseal(&mut bytes);
            }
            let aligned = AlignedBytes::copy_of(&bytes);
            match Model::parse(&aligned) {
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                    let name: String = format!("{error:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
                    *deep.entry(name).or_default() += 1;
                }
                Ok(model) => {
                    assert!(seal || bytes == good, "round {round}: a damaged file was accepted");
                    accepted += 1;
                    // Whatever the parser lets through must run.
                    let engine = Engine::new(&model);
                    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
                    let mut out = vec![0.0; model.embedding_dimension()];
                    let done = engine.embed(tiles.tile(0), &mut arena, &mut out);
                    assert_eq!(done.is_ok(), model.tile_len() == tiles.tile_len(), "{done:?}");
                }
            }
        }
        println!("{}: {refused} refused, {accepted} accepted and run; {deep:?}", precision.name());
        assert!(refused > 5_000 && accepted > 500 && deep.len() > 12, "{refused} {accepted} {deep:?}");
    }
}

/// Also where only the header differs: a CRC right behind its bytes would cancel them.
#[test]
fn the_crc_names_the_whole_file() {
    let (mut encoder, _) = tiny();
    let mut crcs = std::collections::BTreeSet::new();
    for name in ["one", "two", "three", "four"] {
        encoder.card.name = name.into();
        let file = AlignedBytes::copy_of(&float::convert(&encoder, Precision::F32).unwrap());
        crcs.insert(Model::parse(&file).unwrap().file_crc());
    }
    assert_eq!(crcs.len(), 4);
}

/// Every single bit of a whole file.
#[test]
fn every_flipped_bit_is_found() {
    let good = AlignedBytes::copy_of(&file(Precision::Int8));
    Model::parse(&good).unwrap();
    let mut bytes = AlignedBytes::copy_of(&good);
    for bit in 0..8 * bytes.len() {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Model::parse(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A patchify stem and version 3 go together.
#[test]
fn versions_go_with_what_they_are_for() {
    let named = Architecture::named("yocto", 64, 32).unwrap();
    for precision in [Precision::F32, Precision::F16, Precision::Int8] {
        for (stem_padding, own) in [(StemPadding::Same, 1), (StemPadding::Patchify, 3)] {
            let architecture = Architecture { dims: [4, 5, 6, 8], stem_padding, ..named };
            let encoder = random_encoder(architecture, &["B4", "B3"], 5);
            let good = match precision {
                Precision::Int8 => int8::convert(&encoder, &random_tiles(2, 2, 64, 5)).unwrap(),
                _ => float::convert(&encoder, precision).unwrap(),
            };
            for major in 0..=5 {
                let mut bytes = good.clone();
                bytes[8] = major;
                reseal(&mut bytes);
                let found = Model::parse(&AlignedBytes::copy_of(&bytes)).map(drop);
                let expected = match u16::from(major) {
                    major if major == own => Ok(()),
                    // Nothing of an int8 model says that it has no raised layer.
                    2 if own == 1 && precision == Precision::Int8 => Ok(()),
                    major @ 1..=3 => Err(ModelError::VersionContent { major, expected: own }),
                    major => Err(ModelError::Version { major, minor: 0 }),
                };
                assert_eq!(found, expected, "{precision:?} {stem_padding:?} as version {major}");
            }
        }
    }
}

/// A patchify stem with more inputs than its sums bear is refused in a file, whoever wrote it.
#[test]
fn a_patchify_stem_has_a_limit_of_bands() {
    let stem_padding = StemPadding::Patchify;
    let architecture =
        Architecture { dims: [4, 5, 6, 8], stem_padding, ..Architecture::named("yocto", 64, 32).unwrap() };
    let names: Vec<String> = (1..=21).map(|i| format!("B{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let good = random_encoder(architecture, &names[..20], 5);
    float::convert(&good, Precision::F32).unwrap();
    let many = random_encoder(architecture, &names, 5);
    let limit = "a patchify stem of 4 x 4 pixels and 21 bands has more than 320 inputs";
    assert!(many.card.validate().unwrap_err().contains(limit));
    let sections: Vec<SectionData> = (0..)
        .map_while(|i| expected_section(&architecture, 21, Precision::F32, i))
        .map(|spec| SectionData::F32(vec![0.5; spec.elements]))
        .collect();
    let sections: Vec<Section> = sections.iter().map(Section::tensor).collect();
    let bytes = encode(&header(&many.card, Precision::F32).unwrap(), &sections, false).unwrap();
    let found = error(&bytes);
    assert!(matches!(found, ModelError::Architecture(_)) && found.to_string().contains(limit), "{found}");
}

/// A mark of a raised layer means something in versions 2 and 3 only, and leaves room for the lower bits' shift.
#[test]
fn marks_of_raised_layers_are_checked() {
    let plain = file(Precision::Int8);
    let block = Place::Block { stage: 2, block: 1 };
    let good = raise(&plain, &[block]);
    let aligned = AlignedBytes::copy_of(&good);
    let model = Model::parse(&aligned).unwrap();
    assert!(model.version_major() == 2 && model.is_raised(block) && !model.is_raised(Place::Head));
    assert!(!model.is_raised(Place::Block { stage: 2, block: 0 }));
    let constants = start(model.architecture(), block) + BLOCK_SECTIONS - 1;
    let shift = model.section_entry(constants).unwrap().offset + 36;
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        reseal(&mut bytes);
        Model::parse(&AlignedBytes::copy_of(&bytes)).map(drop)
    };
    let with = |value: i32| read(&|b| b[shift..shift + 4].copy_from_slice(&value.to_le_bytes()));
    for value in [0, 31, 32, 57] {
        assert_eq!(with(value), Ok(()), "{value}");
    }
    let refused = |found: Result<(), ModelError>| {
        assert!(
            matches!(found, Err(ModelError::OutOfRange { index, element: 9, .. }) if index == constants),
            "{found:?}"
        );
    };
    [58, 63, 64, 288, i32::MAX, i32::MIN, -1].into_iter().for_each(|value| refused(with(value)));
    // In version 1 it is no mark, but a shift beyond its limit.
    refused(read(&|b| b[8] = 1));
    // What has no raised layer is a file of version 1.
    assert_eq!(plain[8..12], [1, 0, 0, 0]);
    assert_eq!(raise(&plain, &[]), plain);
}

#[test]
fn every_error_says_what_is_wrong() {
    let (encoder, tiles) = tiny();
    let good = file(Precision::F32);
    let (table_start, rows) = table(&good).unwrap();
    let refuse = |bytes: &[u8], expected: &str| {
        let found = error(bytes).to_string();
        assert!(found.contains(expected), "{found:?} does not contain {expected:?}");
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        refuse(&bytes, expected);
    };
    let sealed = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        reseal(&mut bytes);
        refuse(&bytes, expected);
    };

    let shifted = AlignedBytes::copy_of(&[&[0; 8], &good[..]].concat());
    let misaligned = Model::parse(&shifted[8..]).unwrap_err();
    assert!(matches!(misaligned, ModelError::Misaligned { .. }) && misaligned.to_string().contains("multiple of 64"));

    // The file as a whole.
    refuse(&[], "model is truncated: 0 bytes, 32 needed");
    refuse(&good[..good.len() - 1], "model is truncated");
    refuse(&[&good[..], &[0]].concat(), "its prefix says");
    refuse(b"not a model, but long enough to hold the prefix", "not a .nadir model: the magic number is [6e,");
    changed(&|b| _ = b.remove(4), "not a .nadir model");
    changed(&|b| b[..8].copy_from_slice(b"\x89NDR\r\n\x1a\n"), "a draft of the format: convert the model again");
    changed(&|b| b[8] = 4, "version is 4.0, this runtime reads 1.x to 3.x");
    changed(&|b| b[9] = 1, "version is 257.0, this runtime reads 1.x to 3.x");
    changed(&|b| b[20] = 7, "parity field is 00000007, must be 00000000 (none) or ffffffff");
    changed(&|b| b[20..24].fill(0xff), "bytes, must be a multiple of 72");
    changed(&|b| b[40] ^= 1, "head (prefix, header and section table) is damaged");
    changed(&|b| b[good.len() - END_BYTES] ^= 1, "file is damaged");
    changed(&|b| *b.last_mut().unwrap() = 1, "is 0x01, must be zero");
    let first = u32_at(&good, table_start + 8);
    changed(&|b| b[first] ^= 1, "section 0 (stem initial convolution weight) is damaged: CRC is");

    // Prefix, with right checksums. Only integers have layers that can be raised.
    sealed(&|b| b[8] = 2, "model file version is 2, which such a model does not have, but 1");
    sealed(&|b| b[13] = 0xff, "header has 65");
    sealed(&|b| b[16] = 0, "must be zero (padding or reserved)");
    sealed(&|b| b[18] = 1, "model is truncated");
    let end = table_start + rows * ENTRY_BYTES;
    sealed(&|b| b[end] = 1, "must be zero (padding or reserved)");
    sealed(&|b| b[end + HEAD_CRC_BYTES] = 1, "must be zero (padding or reserved)");

    // Table, with right checksums.
    sealed(&|b| b[table_start + 4] = 9, "section 0: index is 9, expected 0");
    sealed(&|b| b[table_start + 2] = 1, "section 0: reserved is 1, expected 0");
    sealed(&|b| b[table_start + 1] = 6, "section 0: type is 6");
    sealed(&|b| b[table_start + 8] ^= 64, "section 0: offset is");
    sealed(&|b| b[table_start] = 3, "section 0: kind is 3");
    sealed(&|b| b[table_start + 1] = 2, "holds 288 i8, expected 288 f32");
    sealed(&|b| b[table_start + 16] = 1, "section 0 (stem initial convolution weight) holds 257 f32, expected 288 f32");
    sealed(&|b| b[table_start] = 0x90, "section 1: kind is 0");

    sealed(&|b| b.truncate(good.len() - ALIGNMENT), &format!("section {}: elements is 6, expected 0", rows - 1));
    sealed(&|b| b.resize(good.len() + ALIGNMENT, 0), "its prefix says");
    sealed(&|b| b.truncate(good.len() - 1), "bytes, must be a multiple of 64");

    // Weights.
    sealed(&|b| b[first + 4..first + 8].copy_from_slice(&f32::NAN.to_le_bytes()), "not finite at element 1");

    // Header fields.
    let sections: Vec<Section> = (0..rows)
        .map(|i| {
            let spec = expected_section(&encoder.card.architecture, 2, Precision::F32, i).unwrap();
            Section::tensor(&SectionData::F32(vec![0.5; spec.elements]))
        })
        .collect();
    let header = header(&encoder.card, Precision::F32).unwrap();
    let written = |change: &dyn Fn(&mut Header<'static>), expected: &str| {
        let mut header = Header {
            name: "name",
            embedding_space: "space",
            model_version: 1,
            provenance: Default::default(),
            precision: header.precision,
            architecture: header.architecture,
            embedding_dimension: header.embedding_dimension,
            bands: header.bands.clone(),
        };
        change(&mut header);
        refuse(&encode(&header, &sections, false).unwrap(), expected);
    };
    written(&|h| h.name = "", "name has 0 bytes, limits are 1 to 32");
    written(&|h| h.embedding_space = "this is longer than thirty-two bytes", "embedding_space has 36 bytes");
    written(&|h| h.architecture.patch_size = 7, "architecture: patch size 7");
    written(&|h| h.embedding_dimension = 7, "embedding_dimension is 7, the architecture gives 6");
    written(&|h| h.bands.clear(), "model has no band");
    written(&|h| h.bands[1].name = h.bands[0].name.clone(), "band 1 has no name or the name of an earlier band");
    written(&|h| h.bands[1].name = "B08".try_into().unwrap(), "band 1 has a name that is not canonical");
    written(&|h| h.bands[0].name = "B4,B3".try_into().unwrap(), "band 0 has a name that is not canonical");
    written(&|h| h.bands[1].std = -1.0, "band 1: std is -1");
    written(&|h| h.bands[0].no_data = Some(f32::NAN), "band 0: no_data is NaN");
    written(&|h| h.architecture.depths[0] = 2, "section 18 (block 0.1 depthwise weight) holds 3 f32, expected 784 f32");
    written(&|h| h.architecture.depths[2] = 1, "holds");
    refuse(
        &encode(&header, &sections[..rows - 1], false).unwrap(),
        &format!("model has {} tensors, the architecture needs {rows}", rows - 1),
    );
    let more = |section: Section| encode(&header, &[&sections[..], &[section]].concat(), false).unwrap();
    refuse(
        &more(Section::tensor(&SectionData::I8(vec![1]))),
        &format!("model has {} tensors, the architecture needs {rows}", rows + 1),
    );

    // Ancillary sections: type, length, order, and what float models cannot have.
    let blocks = |dtype, bytes: usize| Section { kind: KIND_BLOCKS, dtype, bytes: vec![0; bytes] };
    let tensor_bytes: usize = sections.iter().map(|s| s.bytes.len().next_multiple_of(ALIGNMENT)).sum();
    let right = 4 * tensor_bytes.div_ceil(4096);
    assert!(Model::parse(&AlignedBytes::copy_of(&more(blocks(Dtype::I32, right)))).is_ok());
    refuse(&more(blocks(Dtype::I16, right)), &format!("section {rows}: type is 3, expected 4"));
    refuse(&more(blocks(Dtype::I32, right + 4)), &format!("section {rows}: elements is {}", right / 4 + 1));
    let other = |kind, bytes| Section { kind, dtype: Dtype::I8, bytes: vec![0; bytes] };
    refuse(&more(other(0x81, 48)), &format!("section {rows}: elements is 48, expected 0"));
    refuse(&more(other(0x7f, 1)), &format!("section {rows}: kind is 127, expected 128"));
    let two = |first, second| encode(&header, &[&sections[..], &[first, second]].concat(), false).unwrap();
    refuse(&two(other(0x90, 5), other(0x90, 5)), &format!("section {}: kind is 144, expected 145", rows + 1));
    refuse(&two(other(0xff, 72), other(0x90, 5)), &format!("section {rows}: kind is 255, expected 254"));
    refuse(&two(other(0x90, 5), other(0xff, 71)), &format!("section {}: elements is 71, expected 72", rows + 1));
    assert!(Model::parse(&AlignedBytes::copy_of(&two(other(0x90, 5), other(0xff, 72)))).is_ok());

    // The postcard encoding: a text that is not UTF-8, and a byte too many.
    sealed(&|b| b[PREFIX_BYTES + 1] = 0xff, "header does not decode");
    let mut longer = good.clone();
    let length = u32_at(&good, 12);
    longer[12..16].copy_from_slice(&(length as u32 + 1).to_le_bytes());
    assert_ne!((PREFIX_BYTES + length) % ALIGNMENT, 0, "the byte after the header is padding");
    reseal(&mut longer);
    refuse(&longer, "header has 1 bytes after its last field");

    // The integers' own limits.
    let mut integers = int8::convert(&encoder, &tiles).unwrap();
    let aligned = AlignedBytes::copy_of(&integers);
    let model = Model::parse(&aligned).unwrap();
    let last = model.section_entry(model.section_count() - 1).unwrap();
    integers[last.offset..last.offset + last.bytes()].fill(0x7f);
    reseal(&mut integers);
    refuse(&integers, "beyond its limits");
}

/// A later minor version may append to the header, and add sections that this reader does not know.
#[test]
fn a_later_minor_version_is_read() {
    let (encoder, tiles) = tiny();
    let good = file(Precision::F32);
    let rows = table(&good).unwrap().1;
    let header = header(&encoder.card, Precision::F32).unwrap();
    let aligned = AlignedBytes::copy_of(&good);
    let model = Model::parse(&aligned).unwrap();
    let mut sections: Vec<_> = (0..rows)
        .map(|i| match model.section_entry(i).unwrap().dtype {
            Dtype::F32 => Section::tensor(&SectionData::F32(model.section(i).to_vec())),
            _ => unreachable!("an f32 model"),
        })
        .collect();
    sections.push(Section { kind: 0x90, dtype: Dtype::I16, bytes: vec![1, 0, 2, 0, 3, 0] });
    let mut later = encode(&header, &sections, false).unwrap();
    later[10] = 2;
    let length = u32_at(&later, 12) as u32;
    later[12..16].copy_from_slice(&(length + 1).to_le_bytes());
    reseal(&mut later);
    let later = AlignedBytes::copy_of(&later);
    let read = Model::parse(&later).unwrap();
    assert_eq!(read.section::<i16>(rows), [1, 2, 3]);
    let embed = |model: &Model<'_>| nadir_quantize::embed::embed(model, &tiles, || ()).unwrap();
    assert_eq!(embed(&read), embed(&model));
}

//! From tensors to a file for flight: block CRCs, self-test, checksum columns, parity, signature (`docs/model-file.md`).

use anyhow::{Context, Result, bail};
use ed25519_dalek::{Signer, SigningKey};
use nadir::encoder::Encoder;
use nadir::guard::{SelfTest, TileKind, key_id, signed_message};
use nadir::model::int8_layout::stored;
use nadir::model::{
    BLOCK_BYTES, Dtype, KIND_ANCILLARY, KIND_BLOCKS, KIND_COLUMNS, KIND_SELF_TEST, KIND_SIGNATURE, Model, Place,
    Precision, SIGNATURE_BYTES, STAGES, crc32c,
};
use nadir_formats::AlignedBytes;

use crate::writer::{Section, write_file};

/// Tiles of the self-test that is written.
const SELF_TEST_TILES: u32 = 2;

/// What a file for flight has.
pub struct Equipment<'a> {
    /// Version of the model, that of the file before if not given.
    pub model_version: Option<u32>,
    /// Whether a parity byte is added for each word.
    pub parity: bool,
    /// The key that signs.
    pub key: Option<&'a SigningKey>,
}

/// The file of `model` with block CRCs, for int8 models also with a self-test and checksum columns, and what `equipment` says.
/// Tensors and embeddings stay the same; ancillary sections of unknown kinds are left out.
///
/// # Errors
/// If the self-test's tiles cannot be embedded: never for a parsed model.
pub fn equip(model: &Model<'_>, equipment: &Equipment<'_>) -> Result<Vec<u8>> {
    let mut header = model.header().clone();
    header.model_version = equipment.model_version.unwrap_or(header.model_version);
    let mut sections = Section::all_of(model);
    sections.retain(|section| section.kind < KIND_ANCILLARY);
    sections.push(Section { kind: KIND_BLOCKS, dtype: Dtype::I32, bytes: little_endian(&block_crcs(model)) });
    if model.precision() == Precision::Int8 {
        let bytes = self_test(model)?.to_bytes().to_vec();
        sections.push(Section { kind: KIND_SELF_TEST, dtype: Dtype::I8, bytes });
        let bytes = little_endian(&checksum_columns(model));
        sections.push(Section { kind: KIND_COLUMNS, dtype: Dtype::I32, bytes });
    }
    let file = write_file(&header, &sections, equipment.parity)?;
    match equipment.key {
        None => Ok(file),
        Some(key) => sign(&Model::parse(&AlignedBytes::copy_of(&file))?, key),
    }
}

/// The file of `model`, signed; a signature that it had is replaced, all else stays.
///
/// # Errors
/// If the file cannot be put together again: never for a parsed model of this version of the format.
pub fn sign(model: &Model<'_>, key: &SigningKey) -> Result<Vec<u8>> {
    let mut sections = Section::all_of(model);
    sections.retain(|section| section.kind != KIND_SIGNATURE);
    // The message covers the prefix, hence the length with the signature.
    let id = key_id(&key.verifying_key().to_bytes());
    let signature =
        |signature: &[u8; 64]| Section { kind: KIND_SIGNATURE, dtype: Dtype::I8, bytes: [&id[..], signature].concat() };
    sections.push(signature(&[0; 64]));
    debug_assert_eq!(sections.last().map(|s| s.bytes.len()), Some(SIGNATURE_BYTES));
    let blank = AlignedBytes::copy_of(&write_file(model.header(), &sections, model.has_parity())?);
    let message = signed_message(&Model::parse(&blank).context("the file to be signed")?);
    sections.pop();
    sections.push(signature(&key.sign(&message).to_bytes()));
    write_file(model.header(), &sections, model.has_parity())
}

/// CRC-32C of each block of the tensors.
pub fn block_crcs(model: &Model<'_>) -> Vec<i32> {
    let tensors = model.data().get(model.tensor_range()).unwrap_or_default();
    tensors.chunks(BLOCK_BYTES).map(|block| crc32c(block) as i32).collect()
}

/// The self-test of an int8 model, its hash computed with the fastest kernels of this machine.
///
/// # Errors
/// If a tile cannot be embedded.
pub fn self_test(model: &Model<'_>) -> Result<SelfTest> {
    let kind = TileKind::for_bands(model.bands());
    // Any seed will do; this one is the model's own.
    let seed = u64::from(crc32c(model.data().get(model.tensor_range()).unwrap_or_default()));
    let test = SelfTest { tiles: SELF_TEST_TILES, kind, seed, hash: [0; 32] };
    let encoder = Encoder::new(model);
    let mut memory = TestMemory::of(&test, &encoder);
    let hash = test.compute(&encoder, &mut memory.tile, &mut memory.arena, &mut memory.embedding)?;
    Ok(SelfTest { hash, ..test })
}

/// Runs the self-test of a model with an encoder.
///
/// # Errors
/// If the model has none, or the embeddings differ.
pub fn run_self_test(encoder: &Encoder<'_>) -> Result<SelfTest> {
    let Some(test) = SelfTest::of(encoder.model()) else { bail!("the model has no self-test") };
    let mut memory = TestMemory::of(&test, encoder);
    test.run(encoder, &mut memory.tile, &mut memory.arena, &mut memory.embedding)?;
    Ok(test)
}

struct TestMemory {
    tile: AlignedBytes,
    arena: AlignedBytes,
    embedding: Vec<f32>,
}

impl TestMemory {
    fn of(test: &SelfTest, encoder: &Encoder<'_>) -> Self {
        let model = encoder.model();
        Self {
            tile: AlignedBytes::zeroed(test.tile_bytes(model)),
            arena: AlignedBytes::zeroed(encoder.arena_bytes()),
            embedding: vec![0.0; model.embedding_dimension()],
        }
    }
}

/// The checksum columns of all blocks of an int8 model: first pointwise layer, second, block by block.
pub fn checksum_columns(model: &Model<'_>) -> Vec<i32> {
    let arch = model.architecture();
    let tensor = |place: Place, name: &str| -> &[i8] {
        let mut specs = (0..).map_while(|index| Some((index, model.expected(index)?)));
        let found = specs.find(|(_, spec)| spec.place == place && spec.name == name);
        found.map_or(&[], |(index, _)| model.section(index))
    };
    let mut all = Vec::new();
    for stage in 0..STAGES {
        let channels = stored(arch.dim(stage));
        for block in 0..arch.depth(stage) {
            let place = Place::Block { stage: stage as u8, block: block as u8 };
            all.extend(column_sums(tensor(place, "pointwise 1 weight"), channels, 4 * channels));
            all.extend(column_sums(tensor(place, "pointwise 2 weight"), 4 * channels, channels));
        }
    }
    all
}

/// For each input of a dense layer the sum of its weights over the outputs; panels are `[outputs / 16, inputs / 4, 16, 4]`.
fn column_sums(weight: &[i8], inputs: usize, outputs: usize) -> Vec<i32> {
    let mut sums = vec![0i32; inputs];
    for (panel, rows) in weight.chunks_exact(16 * inputs).enumerate() {
        for (group, cells) in rows.as_chunks::<64>().0.iter().enumerate() {
            for (at, &w) in cells.iter().enumerate().filter(|(at, _)| panel * 16 + at / 4 < outputs) {
                sums[group * 4 + at % 4] += i32::from(w);
            }
        }
    }
    sums
}

fn little_endian(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

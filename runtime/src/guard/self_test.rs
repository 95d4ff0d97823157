//! The golden self-test of an int8 model: tiles made from a seed, and the SHA-256 of their embeddings' bits.
//!
//! Tiles come from a seed, so that they take no room in the file; their embeddings are the same on every processor, so that 32 bytes
//! stand for all. f32 and f16 models have no such test: their last bits differ between kernels.

use sha2::{Digest, Sha256};

use crate::Tile;
use crate::encoder::{EmbedError, Encoder};
use crate::model::{Band, KIND_SELF_TEST, MAX_SELF_TEST_TILES, Model, ModelError};

/// How the values of the tiles are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TileKind {
    /// u8.
    U8 = 0,
    /// u16.
    U16 = 1,
    /// f32.
    F32 = 2,
}

impl TileKind {
    /// Bytes of a value, which is also the alignment of a tile.
    pub const fn bytes(self) -> usize {
        1 << self as u32
    }

    /// `u8`, `u16` or `f32`.
    pub const fn name(self) -> &'static str {
        ["u8", "u16", "f32"][self as usize]
    }

    /// The narrowest kind that holds the bands' usual values, up to three standard deviations from the mean, in steps that tell them apart.
    pub fn for_bands(bands: &[Band]) -> Self {
        let fits = |limit: f32| bands.iter().all(|b| b.std >= 4.0 && b.mean + 3.0 * b.std <= limit && b.mean >= 0.0);
        match () {
            () if fits(255.0) => TileKind::U8,
            () if fits(65535.0) => TileKind::U16,
            () => TileKind::F32,
        }
    }
}

/// Why a self-test did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestError {
    /// The memory for a tile is too small, or does not begin at a multiple of a value's bytes.
    #[error(
        "memory for a tile has {found} bytes at address {address:#x}, {needed} needed at a multiple of {alignment}"
    )]
    TileMemory {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
        /// Address of the first byte.
        address: usize,
        /// Alignment needed.
        alignment: usize,
    },
    /// A tile could not be embedded.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The embeddings do not have the bits on record.
    #[error("embeddings have the hash {found:016x}..., {expected:016x}... is on record")]
    Different {
        /// First 8 bytes of the hash computed.
        found: u64,
        /// First 8 bytes of the hash in the file.
        expected: u64,
    },
}

/// A self-test: which tiles, and the hash of their embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// Number of tiles, 1 to [`MAX_SELF_TEST_TILES`].
    pub tiles: u32,
    /// How their values are stored.
    pub kind: TileKind,
    /// From which they are made.
    pub seed: u64,
    /// SHA-256 of the embeddings' bits: f32, little-endian, a tile after the other.
    pub hash: [u8; 32],
}

/// Output `index` of the generator SplitMix64 from `seed` (Steele, Lea and Flood, 2014), its upper 8 bits.
fn draw(seed: u64, index: u64) -> i8 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 56) as u8 as i8
}

impl SelfTest {
    /// The self-test of a model; `None` if its file has none.
    pub fn of(model: &Model<'_>) -> Option<Self> {
        let section = model.section_bytes(model.ancillary(KIND_SELF_TEST)?.index as usize);
        let [tiles, kind, seed] = numbers(section)?;
        let kind = match kind {
            0 => TileKind::U8,
            1 => TileKind::U16,
            2 => TileKind::F32,
            _ => return None,
        };
        Some(Self { tiles: tiles as u32, kind, seed, hash: *section.last_chunk()? })
    }

    /// The section's bytes.
    pub fn to_bytes(&self) -> [u8; crate::model::SELF_TEST_BYTES] {
        let mut bytes = [0; crate::model::SELF_TEST_BYTES];
        let parts: [&[u8]; 4] =
            [&self.tiles.to_le_bytes(), &(self.kind as u32).to_le_bytes(), &self.seed.to_le_bytes(), &self.hash];
        bytes.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// Checks the numbers of a model's self-test, if it has one.
    pub(crate) fn check(model: &Model<'_>) -> Result<(), ModelError> {
        let Some(entry) = model.ancillary(KIND_SELF_TEST) else { return Ok(()) };
        let Some([tiles, kind, _]) = numbers(model.section_bytes(entry.index as usize)) else { return Ok(()) };
        let refused = |field, found, limit| Err(ModelError::SelfTest { field, found: found as u32, limit });
        match () {
            () if tiles == 0 || tiles > u64::from(MAX_SELF_TEST_TILES) => refused("tiles", tiles, MAX_SELF_TEST_TILES),
            () if kind > TileKind::F32 as u64 => refused("tile type", kind, TileKind::F32 as u32),
            () => Ok(()),
        }
    }

    /// Bytes of the memory for a tile.
    pub fn tile_bytes(&self, model: &Model<'_>) -> usize {
        model.tile_len() * self.kind.bytes()
    }

    /// Makes tile `tile` of the test, `[bands, height, width]`, as `docs/model-file.md` says: about each band's mean, within three standard
    /// deviations, coarse squares of 8 pixels and a finer grain.
    fn fill(&self, model: &Model<'_>, tile: u32, mut put: impl FnMut(usize, f32)) {
        let side = usize::from(model.architecture().tile_size);
        for (b, band) in model.bands().iter().enumerate() {
            let plane = u64::from(tile) * model.bands().len() as u64 + b as u64;
            for i in 0..side * side {
                let (y, x) = (i / side, i % side);
                let coarse = draw(self.seed, (1 << 40) | ((plane * 32 + y as u64 / 8) * 32 + x as u64 / 8));
                let fine = draw(self.seed, plane * (side * side) as u64 + i as u64);
                let share = (2 * i32::from(coarse) + i32::from(fine)) as f32 / 128.0;
                put(b * side * side + i, band.mean + band.std * share);
            }
        }
    }

    /// The hash of the embeddings that `encoder` computes; arguments as for [`SelfTest::run`].
    ///
    /// # Errors
    /// As [`SelfTest::run`], but for [`SelfTestError::Different`].
    pub fn compute(
        &self,
        encoder: &Encoder<'_>,
        tile: &mut [u8],
        arena: &mut [u8],
        embedding: &mut [f32],
    ) -> Result<[u8; 32], SelfTestError> {
        let model = encoder.model();
        let (address, needed, alignment) = (tile.as_ptr() as usize, self.tile_bytes(model), self.kind.bytes());
        let memory = SelfTestError::TileMemory { found: tile.len(), needed, address, alignment };
        let tile = tile.get_mut(..needed).ok_or(memory)?;
        let mut hash = Sha256::new();
        for index in 0..self.tiles.min(MAX_SELF_TEST_TILES) {
            // `as` cuts fractions off and saturates.
            macro_rules! embed {
                ($variant:ident, $value:ty) => {{
                    let values: &mut [$value] = bytemuck::try_cast_slice_mut(tile).map_err(|_| memory)?;
                    self.fill(model, index, |at, v| {
                        if let Some(value) = values.get_mut(at) {
                            *value = v as $value;
                        }
                    });
                    encoder.embed(Tile::$variant(values), arena, embedding)?;
                }};
            }
            match self.kind {
                TileKind::U8 => embed!(U8, u8),
                TileKind::U16 => embed!(U16, u16),
                TileKind::F32 => embed!(F32, f32),
            }
            embedding.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        Ok(hash.finalize().into())
    }

    /// Embeds the tiles and compares the hash of their embeddings with the one on record.
    ///
    /// - `tile`: memory for a tile, at least [`SelfTest::tile_bytes`], at a multiple of [`TileKind::bytes`].
    /// - `arena`, `embedding`: as for [`Encoder::embed`].
    ///
    /// Takes the time of as many embeddings as the test has tiles. What all of memory holds is undefined after.
    ///
    /// # Errors
    /// See [`SelfTestError`].
    pub fn run(
        &self,
        encoder: &Encoder<'_>,
        tile: &mut [u8],
        arena: &mut [u8],
        embedding: &mut [f32],
    ) -> Result<(), SelfTestError> {
        let found = self.compute(encoder, tile, arena, embedding)?;
        if found == self.hash {
            return Ok(());
        }
        let start = |hash: &[u8; 32]| hash.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        Err(SelfTestError::Different { found: start(&found), expected: start(&self.hash) })
    }
}

/// Tiles, kind and seed of a section.
fn numbers(section: &[u8]) -> Option<[u64; 3]> {
    let (tiles, rest) = section.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let seed = rest.first_chunk()?;
    Some([u32::from_le_bytes(*tiles).into(), u32::from_le_bytes(*kind).into(), u64::from_le_bytes(*seed)])
}

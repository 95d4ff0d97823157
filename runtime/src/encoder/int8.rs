//! The integer encoder: int8 weights and matrix inputs, an int16 residual stream, 32 and 64-bit sums; no floating point but the
//! input of f32 tiles and the exact scaling of the result.
//!
//! `docs/integer-arithmetic.md` states every operation to the bit; this file is its reference. One block is two passes over the
//! map: the first keeps the index into the GELU table (int8) of every hidden value and sums the squares that Global Response
//! Normalization needs, the second applies the GRN multiplier of each channel and projects back into the residual stream.

use super::EmbedError;
use super::arena::Arena;
use crate::Tile;
use crate::kernels::fixed::*;
use crate::kernels::int8::{Int8Kernels, Run, SCALAR};
use crate::model::int8_layout::{
    Block, Downsample, Head, INPUT_FRACTION_BITS, NORM_BITS, POOL_BITS, RESIDUAL_GAIN_BITS, Stem, VALUE_GAIN_BITS,
};
use crate::model::{Architecture, Model, STAGES};

/// Pixels that share one pass over a layer's weights.
const PIXELS: usize = 4;
/// Fractional bits of a GRN norm's ratio to the mean norm.
const RATIO_BITS: u32 = 16;

/// How many elements each part of the arena holds.
struct Regions {
    /// i16, the residual stream `[grid, grid, channels]`.
    map: usize,
    /// i8, `[grid, grid, 4 * channels]`; holds the input tile (i16) before the first block and the next stage's map (i16) in a
    /// downsampling.
    hidden: usize,
    /// i32, accumulators of [`PIXELS`] pixels.
    acc: usize,
    /// i16, one layer's output for [`PIXELS`] pixels, or the stem's window.
    values: usize,
    /// i8, inputs of a matrix product for [`PIXELS`] pixels.
    bytes: usize,
    /// u64 and i16, per hidden channel: sum of squares, GRN multiplier.
    channels: usize,
}

impl Regions {
    fn of(a: &Architecture, bands: usize) -> Self {
        let grids = a.grids();
        let tile = usize::from(a.tile_size);
        let widest = a.dims.iter().copied().max().map_or(0, usize::from);
        let taps = a.stem_stride() * a.stem_stride();
        let map = (0..STAGES).map(|s| grids[s] * grids[s] * a.dim(s)).max().unwrap_or(0);
        Self {
            map,
            hidden: (4 * map).max(2 * tile * tile * bands),
            acc: PIXELS * 4 * widest,
            values: (PIXELS * widest).max((taps + 1) * a.dim(0) + 9 * bands),
            bytes: PIXELS * 4 * widest,
            channels: 4 * widest,
        }
    }

    /// Bytes of all parts. Fits 32 bits for every valid architecture.
    fn bytes(&self) -> usize {
        Arena::padded::<u64>(self.channels)
            + Arena::padded::<i32>(self.acc)
            + Arena::padded::<i16>(self.map)
            + Arena::padded::<i16>(self.values)
            + Arena::padded::<i16>(self.channels)
            + Arena::padded::<i8>(self.hidden)
            + Arena::padded::<i8>(self.bytes)
    }
}

/// Bytes of the arena.
pub(crate) fn arena_bytes(model: &Model<'_>) -> usize {
    Regions::of(model.architecture(), model.bands().len()).bytes()
}

/// The arena, cut up as [`Regions`] says.
struct Buffers<'a> {
    map: &'a mut [i16],
    hidden: &'a mut [i8],
    acc: &'a mut [i32],
    values: &'a mut [i16],
    bytes: &'a mut [i8],
    squares: &'a mut [u64],
    multipliers: &'a mut [i16],
}

/// Embeds one tile; lengths and alignment were checked by [`super::Encoder::embed`], and `arena` has exactly [`arena_bytes`] bytes.
pub(crate) fn embed(model: &Model<'_>, tile: &Tile<'_>, arena: &mut [u8], out: &mut [f32]) -> Result<(), EmbedError> {
    let a = model.architecture();
    let regions = Regions::of(a, model.bands().len());
    let mut arena = Arena::new(arena);
    let mut buffers = Buffers {
        squares: arena.take(regions.channels)?,
        acc: arena.take(regions.acc)?,
        map: arena.take(regions.map)?,
        values: arena.take(regions.values)?,
        multipliers: arena.take(regions.channels)?,
        hidden: arena.take(regions.hidden)?,
        bytes: arena.take(regions.bytes)?,
    };
    let kernels = &SCALAR;
    quantize_tile(model, tile, &mut buffers);
    stem(model, kernels, &mut buffers);
    for stage in 0..STAGES {
        if stage > 0 {
            downsample(model, stage, kernels, &mut buffers);
        }
        for block in 0..usize::from(a.depths[stage]) {
            run_block(model, stage, block, kernels, &mut buffers);
        }
    }
    head(model, &mut buffers, out);
    Ok(())
}

/// Section 2 of the arithmetic: stored values to i16 with [`INPUT_FRACTION_BITS`] fractional bits, `[height, width, bands]`.
fn quantize_tile(model: &Model<'_>, tile: &Tile<'_>, buffers: &mut Buffers<'_>) {
    let stem = Stem::of(model);
    let bands = model.bands();
    let side = usize::from(model.architecture().tile_size);
    let pixels = side * side;
    let input: &mut [i16] = bytemuck::cast_slice_mut(&mut buffers.hidden[..2 * pixels * bands.len()]);
    for (b, band) in bands.iter().enumerate() {
        let integer = |stored: u16| {
            if band.no_data == Some(f32::from(stored)) {
                return 0;
            }
            let product = i64::from(stored).wrapping_mul(i64::from(stem.input_multiplier[b]));
            let value = product.wrapping_add(stem.input_offset[b]) >> stem.input_shift;
            value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16
        };
        let scale = (1 << INPUT_FRACTION_BITS) as f32 / band.std;
        let float = |stored: f32| {
            if !stored.is_finite() || band.no_data == Some(stored) {
                return 0;
            }
            libm::rintf((stored - band.mean) * scale) as i16
        };
        let plane = b * pixels..(b + 1) * pixels;
        let destination = input.iter_mut().skip(b).step_by(bands.len());
        match tile {
            Tile::U8(v) => destination.zip(&v[plane]).for_each(|(to, &v)| *to = integer(u16::from(v))),
            Tile::U16(v) => destination.zip(&v[plane]).for_each(|(to, &v)| *to = integer(v)),
            Tile::F32(v) => destination.zip(&v[plane]).for_each(|(to, &v)| *to = float(v)),
        }
    }
}

/// The normaliser of one position.
fn normalizer(norm: &LayerNorm, values: &[i16], reciprocal: u32) -> Normalizer {
    let sum = values.iter().map(|&v| i32::from(v)).sum();
    let squares = values.iter().map(|&v| u64::from((i32::from(v) * i32::from(v)) as u32)).sum();
    norm.normalizer(sum, squares, values.len() as u32, reciprocal)
}

/// Accumulators to i16, one multiplier a channel.
fn requantize(acc: &[i32], multiplier: &[i32], shift: u32, values: &mut [i16]) {
    let channels = multiplier.len();
    for (acc, values) in acc.chunks_exact(channels).zip(values.chunks_exact_mut(channels)) {
        for ((&acc, &multiplier), value) in acc.iter().zip(multiplier).zip(values) {
            *value = saturate_i16(rescale(acc, multiplier, shift));
        }
    }
}

/// `(value * gain + offset) / 2^bits`, rounded down; the offset holds the rounding half.
fn affine(value: i16, gain: i32, offset: i32, bits: u32) -> i32 {
    let sum = i64::from(value) * i64::from(gain) + i64::from(offset);
    (sum >> bits).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// The table's value for an index of -128..=127.
#[inline(always)]
fn gelu(table: &[i16; 256], index: i8) -> i16 {
    table[usize::from(index as u8 ^ 0x80)]
}

/// Sections 3 and 4: initial convolution, LayerNorm, GELU, depthwise stem, LayerNorm, into the residual map of stage 0.
fn stem(model: &Model<'_>, kernels: &Int8Kernels, buffers: &mut Buffers<'_>) {
    let a = model.architecture();
    let stem = Stem::of(model);
    let (bands, d0, k) = (model.bands().len(), a.dim(0), a.stem_stride());
    let (side, grid, initial) = (usize::from(a.tile_size), a.grids()[0], a.initial_grid());
    let reciprocal = reciprocal(d0 as u32);
    let input: &[i16] = bytemuck::cast_slice(&buffers.hidden[..2 * side * side * bands]);
    let (window, rest) = buffers.values.split_at_mut(k * k * d0);
    let (row, rest) = rest.split_at_mut(d0);
    let patch = &mut rest[..9 * bands];
    let acc = &mut buffers.acc[..d0];
    // Where step `step` of a window at `origin` falls in a map of `size` that is padded by `padding`.
    let inside = |origin: usize, step: usize, padding: usize, size: usize| {
        (origin + step).checked_sub(padding).filter(|&at| at < size)
    };
    for (index, residual) in buffers.map[..grid * grid * d0].chunks_exact_mut(d0).enumerate() {
        let (y, x) = (index / grid * k, index % grid * k);
        for (tap, activation) in window.chunks_exact_mut(d0).enumerate() {
            let (cy, cx) = (inside(y, tap / k, a.stem_pad(), initial), inside(x, tap % k, a.stem_pad(), initial));
            let (Some(cy), Some(cx)) = (cy, cx) else {
                activation.fill(0);
                continue;
            };
            for (position, pixel) in patch.chunks_exact_mut(bands).enumerate() {
                let padding = a.initial_padding();
                match (inside(cy, position / 3, padding, side), inside(cx, position % 3, padding, side)) {
                    (Some(iy), Some(ix)) => pixel.copy_from_slice(&input[(iy * side + ix) * bands..][..bands]),
                    _ => pixel.fill(0),
                }
            }
            (kernels.dense_i16)(patch, stem.initial_weight, stem.initial_bias, acc);
            requantize(acc, stem.initial_multiplier, stem.initial_shift, row);
            let normalizer = normalizer(&stem.initial_norm, row, reciprocal);
            for (c, (&value, activation)) in row.iter().zip(activation).enumerate() {
                let normalized = saturate_i16(normalizer.apply(value));
                let index = affine(normalized, stem.initial_gain[c], stem.initial_offset[c], VALUE_GAIN_BITS);
                *activation = gelu(stem.gelu, saturate_i8(index));
            }
        }
        acc.copy_from_slice(stem.stem_bias);
        for (activation, weight) in window.chunks_exact(d0).zip(stem.stem_weight.chunks_exact(d0)) {
            for ((acc, &x), &w) in acc.iter_mut().zip(activation).zip(weight) {
                *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
            }
        }
        requantize(acc, stem.stem_multiplier, stem.stem_shift, row);
        let normalizer = normalizer(&stem.stem_norm, row, reciprocal);
        for (c, (&value, residual)) in row.iter().zip(residual).enumerate() {
            let normalized = saturate_i16(normalizer.apply(value));
            *residual = saturate_i16(affine(normalized, stem.stem_gain[c], stem.stem_offset[c], RESIDUAL_GAIN_BITS));
        }
    }
}

/// Section 6: LayerNorm, then the 2x2 convolution with stride 2, into a new residual map.
fn downsample(model: &Model<'_>, stage: usize, kernels: &Int8Kernels, buffers: &mut Buffers<'_>) {
    let a = model.architecture();
    let down = Downsample::of(model, stage);
    let (before, channels) = (a.dim(stage - 1), a.dim(stage));
    let (from, to) = (a.grids()[stage - 1], a.grids()[stage]);
    let reciprocal = reciprocal(before as u32);
    let len = to * to * channels;
    let next: &mut [i16] = bytemuck::cast_slice_mut(&mut buffers.hidden[..2 * len]);
    let window = &mut buffers.bytes[..4 * before];
    let acc = &mut buffers.acc[..channels];
    for (index, next) in next.chunks_exact_mut(channels).enumerate() {
        let (y, x) = (2 * (index / to), 2 * (index % to));
        for (tap, normalized) in window.chunks_exact_mut(before).enumerate() {
            let pixel = &buffers.map[((y + tap / 2) * from + x + tap % 2) * before..][..before];
            let normalizer = normalizer(&down.norm, pixel, reciprocal);
            normalized.iter_mut().zip(pixel).for_each(|(to, &v)| *to = saturate_i8(normalizer.apply(v)));
        }
        (kernels.dense)(window, down.weight, down.bias, acc);
        requantize(acc, down.multiplier, down.shift, next);
    }
    buffers.map[..len].copy_from_slice(next);
}

/// Section 5: one block, added to the residual map in place.
fn run_block(model: &Model<'_>, stage: usize, block: usize, kernels: &Int8Kernels, buffers: &mut Buffers<'_>) {
    let a = model.architecture();
    let weights = Block::of(model, stage, block);
    let (channels, grid) = (a.dim(stage), a.grids()[stage]);
    let wide = 4 * channels;
    let map = &mut buffers.map[..grid * grid * channels];
    let hidden = &mut buffers.hidden[..grid * grid * wide];
    let squares = &mut buffers.squares[..wide];
    let multipliers = &mut buffers.multipliers[..wide];
    let reciprocal = reciprocal(channels as u32);

    squares.fill(0);
    for y in 0..grid {
        for x in (0..grid).step_by(PIXELS) {
            let run = Run { y, x, len: PIXELS.min(grid - x) };
            let acc = &mut buffers.acc[..run.len * channels];
            let values = &mut buffers.values[..run.len * channels];
            let normalized = &mut buffers.bytes[..run.len * channels];
            (kernels.depthwise)(map, grid, run, weights.depthwise_weight, weights.depthwise_bias, acc);
            requantize(acc, weights.depthwise_multiplier, weights.depthwise_shift, values);
            for (values, normalized) in values.chunks_exact(channels).zip(normalized.chunks_exact_mut(channels)) {
                let normalizer = normalizer(&weights.norm, values, reciprocal);
                normalized.iter_mut().zip(values).for_each(|(to, &v)| *to = saturate_i8(normalizer.apply(v)));
            }
            let acc = &mut buffers.acc[..run.len * wide];
            (kernels.dense)(normalized, weights.expand_weight, weights.expand_bias, acc);
            let hidden = &mut hidden[(y * grid + x) * wide..][..run.len * wide];
            for (acc, hidden) in acc.chunks_exact(wide).zip(hidden.chunks_exact_mut(wide)) {
                for (c, (&acc, index)) in acc.iter().zip(hidden).enumerate() {
                    let scaled = rescale(acc, weights.expand_multiplier[c], weights.expand_shift);
                    *index = saturate_i8(scaled.saturating_add(weights.zero_point));
                    let value = i32::from(gelu(weights.gelu, *index));
                    squares[c] = squares[c].wrapping_add(u64::from((value * value) as u32));
                }
            }
        }
    }

    grn_multipliers(squares, &weights, multipliers);

    let half = 1 << (weights.grn_shift - 1);
    for (map, hidden) in map.chunks_mut(PIXELS * channels).zip(hidden.chunks(PIXELS * wide)) {
        let inputs = &mut buffers.bytes[..hidden.len()];
        for (hidden, inputs) in hidden.chunks_exact(wide).zip(inputs.chunks_exact_mut(wide)) {
            for ((&index, &multiplier), input) in hidden.iter().zip(&*multipliers).zip(inputs) {
                let product = i32::from(gelu(weights.gelu, index)) * i32::from(multiplier);
                *input = saturate_i8((product + half) >> weights.grn_shift);
            }
        }
        let acc = &mut buffers.acc[..map.len()];
        (kernels.dense)(inputs, weights.project_weight, weights.project_bias, acc);
        for (acc, map) in acc.chunks_exact(channels).zip(map.chunks_exact_mut(channels)) {
            for ((&acc, &multiplier), residual) in acc.iter().zip(weights.project_multiplier).zip(map) {
                let update = rescale(acc, multiplier, weights.project_shift);
                *residual = saturate_i16(i32::from(*residual).saturating_add(update));
            }
        }
    }
}

/// Section 5.4: from the sums of squares (overwritten by the norms) to one multiplier a hidden channel.
fn grn_multipliers(squares: &mut [u64], weights: &Block<'_>, multipliers: &mut [i16]) {
    let channels = squares.len() as u64;
    let mut total = 0u64;
    for value in squares.iter_mut() {
        // At most 2^46 for a map of 2^16 pixels, so that the shift loses nothing.
        *value = isqrt64(*value << (2 * NORM_BITS));
        total = total.saturating_add(*value);
    }
    let total = total.saturating_add(weights.grn_epsilon).max(1);
    for (c, multiplier) in multipliers.iter_mut().enumerate() {
        let ratio = (squares[c].saturating_mul(channels << RATIO_BITS) / total) as i64;
        let slope = i64::from(weights.grn_slope[c]).wrapping_mul(ratio);
        let value = i64::from(weights.grn_gain[c]) + (slope.wrapping_add(1 << (RATIO_BITS - 1)) >> RATIO_BITS);
        *multiplier = value.clamp(-i64::from(i16::MAX), i64::from(i16::MAX)) as i16;
    }
}

/// Section 7: mean over the last map, LayerNorm, embedding.
fn head(model: &Model<'_>, buffers: &mut Buffers<'_>, out: &mut [f32]) {
    let a = model.architecture();
    let head = Head::of(model);
    let (channels, grid) = (a.embedding_dimension(), a.grids()[STAGES - 1]);
    let pooled = &mut buffers.acc[..channels];
    pooled.fill(0);
    for pixel in buffers.map[..grid * grid * channels].chunks_exact(channels) {
        pooled.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v));
    }
    let area = (grid * grid) as i64;
    for value in pooled.iter_mut() {
        *value = (((i64::from(*value) << POOL_BITS) + area / 2).div_euclid(area)) as i32;
    }
    pooled_layer_norm(pooled, head.epsilon);
    let unit = 1.0 / (1u32 << head.fraction_bits) as f32;
    for (c, (&normalized, out)) in pooled.iter().zip(out).enumerate() {
        let product = i64::from(normalized).wrapping_mul(i64::from(head.gain[c]));
        let value = product.wrapping_add(head.offset[c]) >> head.shift;
        *out = f32::from(value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16) * unit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MAX_BANDS, MAX_CHANNELS, MAX_TILE_SIZE};

    /// On a 32-bit processor no size may wrap around.
    #[test]
    fn the_largest_arena_fits_32_bits() {
        let named = Architecture::named("atto", MAX_TILE_SIZE as u16, 8).unwrap();
        let largest = Architecture { dims: [MAX_CHANNELS as u16; STAGES], ..named };
        largest.validate().unwrap();
        let bytes = Regions::of(&largest, MAX_BANDS).bytes();
        // Map (i16) and hidden map (i8, 4 times as wide) of 256 x 256 pixels, and less than a mebibyte besides.
        let maps = 256 * 256 * 2816 * 6;
        assert!(bytes > maps && bytes < maps + (1 << 20) && bytes <= i32::MAX as usize, "{bytes}");
    }
}

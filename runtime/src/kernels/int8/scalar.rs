//! The integer kernels in plain Rust, on every processor: the specification of all others.
//!
//! The functions that have no inner product are `#[inline(always)]`, plain loops (a closure handed to an iterator would not be inlined across
//! target features) and free of branches on data, so that another set can compile them with its own instructions and let the compiler
//! vectorise them. Where an index is not known to lie in its slice it is looked up with `get`, which costs as much as the check before a
//! panic: slices have the lengths that the shapes say, and if they had not, no kernel would panic.

use super::*;
use crate::kernels::fixed::*;
use crate::model::int8_layout::CHANNELS;

/// Plain Rust.
pub static SCALAR: Int8Kernels = Int8Kernels {
    name: "scalar",
    prepare,
    input: |values, band, output, stride| input(values, band, output, stride),
    initial,
    stem: |rows, side, padding, layer, output| stem(rows, side, padding, layer, output),
    layer_norm_i16: |values, norm| layer_norm_i16(values, norm, isqrt32),
    affine: |values, gain, offset, shift| affine(values, gain, offset, shift),
    lookup: |values, table| lookup(values, table),
    depthwise,
    layer_norm: |values, norm, output| layer_norm::<0>(values, norm, output, isqrt32),
    expand,
    activate: |values, table, multipliers| activate(values, table, multipliers),
    activate_split: |values, table, multipliers, low| activate_split::<0>(values, table, multipliers, low),
    project,
    square_roots: |values| square_roots(values),
};

/// The table's value for an index of -128..=127.
#[inline(always)]
pub fn gelu(table: &Table, index: i8) -> i16 {
    table[usize::from(index as u8 ^ 0x80)]
}

/// The bias as it is.
pub fn prepare(layer: &Dense<'_>, bias: &mut [i32]) {
    bias.iter_mut().zip(layer.bias).for_each(|(to, &from)| *to = from);
}

/// Eight values from `index` on.
#[inline(always)]
fn chunk<T: Copy + Default>(values: &[T], index: usize) -> [T; CHANNELS] {
    values.get(index..).and_then(|values| values.first_chunk()).copied().unwrap_or_default()
}

/// Adds a tap of eight channels.
#[inline(always)]
fn multiply_add(acc: &mut [i32; CHANNELS], values: &[i16; CHANNELS], weights: &[i8; CHANNELS]) {
    for c in 0..CHANNELS {
        acc[c] = acc[c].wrapping_add(i32::from(values[c]) * i32::from(weights[c]));
    }
}

/// The values of eight channels from `first` on.
#[inline(always)]
fn requantized(acc: [i32; CHANNELS], layer: &Depthwise<'_>, first: usize) -> [i16; CHANNELS] {
    let multiplier = chunk(layer.multiplier, first);
    core::array::from_fn(|c| requantize(acc[c], multiplier[c], layer.shift) as i16)
}

/// See [`Int8Kernels::input`].
#[inline(always)]
pub fn input(values: &[f32], band: &FloatBand, output: &mut [i16], stride: usize) {
    /// 1.5 * 2^23: what is added to it loses its fraction, rounded to nearest even.
    const INTEGERS: f32 = 12_582_912.0;
    const LANES: usize = 16;
    let one = |stored: f32| {
        let value = (stored - band.mean) * band.scale;
        let rounded = value.clamp(-32768.0, 32767.0) + INTEGERS;
        let integer = rounded.to_bits().wrapping_sub(INTEGERS.to_bits()) as i16;
        let missing = !stored.is_finite() | value.is_nan() | (band.no_data == Some(stored));
        if missing { 0 } else { integer }
    };
    let mut block = [0; LANES];
    for (values, output) in values.chunks(LANES).zip(output.chunks_mut(LANES.saturating_mul(stride.max(1)))) {
        if let Ok(values) = <&[f32; LANES]>::try_from(values) {
            for i in 0..LANES {
                block[i] = one(values[i]);
            }
        } else {
            for (to, &v) in block.iter_mut().zip(values) {
                *to = one(v);
            }
        }
        for (to, &v) in output.iter_mut().step_by(stride.max(1)).zip(&block).take(values.len()) {
            *to = v;
        }
    }
}

/// `finish(value, output)` for the requantized values of one pixel: as many as there are outputs and weights.
#[inline(always)]
fn dense<T>(
    layer: &Dense<'_>,
    inputs: impl Iterator<Item = [i32; GROUP]> + Clone,
    outputs: impl IntoIterator<Item = T>,
    mut finish: impl FnMut(i32, T),
) {
    let panels = layer.weight.chunks_exact(layer.inputs.saturating_mul(PANEL).max(1));
    let constants = layer.bias.as_chunks::<PANEL>().0.iter().zip(layer.multiplier.as_chunks::<PANEL>().0);
    let mut outputs = outputs.into_iter();
    for (weight, (bias, multipliers)) in panels.zip(constants) {
        let mut acc = *bias;
        for (group, x) in weight.as_chunks::<{ PANEL * GROUP }>().0.iter().zip(inputs.clone()) {
            for (acc, w) in acc.iter_mut().zip(group.as_chunks::<GROUP>().0) {
                let products = w.iter().zip(x).map(|(&w, x)| i32::from(w) * x);
                *acc = acc.wrapping_add(products.sum());
            }
        }
        for (acc, &multiplier) in acc.into_iter().zip(multipliers) {
            let Some(output) = outputs.next() else { return };
            finish(requantize(acc, multiplier, layer.shift), output);
        }
    }
}

fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let segment = layer.inputs / 3;
    for (pixel, output) in output.chunks_exact_mut(layer.outputs.max(1)).enumerate() {
        let rows = rows.map(|row| {
            let patch = row.get(pixel.saturating_mul(bands)..).and_then(|rest| rest.get(..segment));
            patch.unwrap_or_default().as_chunks::<GROUP>().0
        });
        let inputs = rows.iter().flat_map(|row| row.iter()).map(|x| x.map(i32::from));
        dense(layer, inputs, output, |value, output| *output = value as i16);
    }
}

/// See [`Int8Kernels::stem`].
#[inline(always)]
pub fn stem(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]) {
    let (channels, side) = (layer.bias.len().max(1), side.max(1));
    let width = rows.len() / (side * channels).max(1);
    for (x, output) in output.chunks_exact_mut(channels).enumerate() {
        for (block, output) in output.as_chunks_mut::<CHANNELS>().0.iter_mut().enumerate() {
            let first = block * CHANNELS;
            let mut acc: [i32; CHANNELS] = chunk(layer.bias, first);
            for tap in 0..side * side {
                let column = (x * side + tap % side).wrapping_sub(padding);
                if column < width {
                    let values = chunk(rows, (tap / side * width + column) * channels + first);
                    let weights = chunk(layer.weight, tap * channels + first);
                    multiply_add(&mut acc, &values, &weights);
                }
            }
            *output = requantized(acc, layer, first);
        }
    }
}

/// Sum and sum of squares of one position.
#[inline(always)]
fn moments(values: &[i16]) -> (i32, u64) {
    let (mut sum, mut squares) = (0i32, 0u64);
    for &value in values {
        sum += i32::from(value);
        squares += u64::from((i32::from(value) * i32::from(value)) as u32);
    }
    (sum, squares)
}

#[inline(always)]
fn normalizer(values: &[i16], norm: &Norm, reciprocal: u32, root: &impl Fn(u32) -> u32) -> Normalizer {
    let (sum, squares) = moments(values);
    norm.constants.normalizer_with(sum, squares, norm.count, reciprocal, root)
}

/// See [`Int8Kernels::layer_norm_i16`].
#[inline(always)]
pub fn layer_norm_i16(values: &mut [i16], norm: &Norm, root: impl Fn(u32) -> u32) {
    let reciprocal = reciprocal(norm.count);
    for pixel in values.chunks_exact_mut(norm.channels.max(1)) {
        let normalizer = normalizer(pixel, norm, reciprocal, &root);
        for value in pixel {
            *value = normalizer.apply(*value).clamp(-8192, 8191) as i16;
        }
    }
}

/// See [`Int8Kernels::affine`].
#[inline(always)]
pub fn affine(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32) {
    for pixel in values.chunks_exact_mut(gain.len().max(1)) {
        for ((value, &gain), &offset) in pixel.iter_mut().zip(gain).zip(offset) {
            *value = saturate_i16(i32::from(*value).wrapping_mul(gain).wrapping_add(offset) >> (shift & 31));
        }
    }
}

/// See [`Int8Kernels::lookup`].
#[inline(always)]
pub fn lookup(values: &mut [i16], table: &Table) {
    for value in values {
        *value = gelu(table, saturate_i8(i32::from(*value)));
    }
}

fn depthwise(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let channels = rows.channels.max(1);
    let places = area.y.clone().flat_map(|y| area.x.clone().map(move |x| (y, x)));
    for ((y, x), output) in places.zip(output.chunks_exact_mut(channels)) {
        let columns = x.saturating_sub(HALF)..(x + HALF + 1).min(rows.side);
        for (block, output) in output.as_chunks_mut::<CHANNELS>().0.iter_mut().enumerate() {
            let first = block * CHANNELS;
            let mut acc: [i32; CHANNELS] = chunk(layer.bias, first);
            for row in y.saturating_sub(HALF)..(y + HALF + 1).min(rows.side) {
                let values = rows.row(row);
                for column in columns.clone() {
                    let tap = (row + HALF - y) * DEPTHWISE_SIDE + column + HALF - x;
                    let (values, weights) =
                        (chunk(values, column * channels + first), chunk(layer.weight, tap * channels + first));
                    multiply_add(&mut acc, &values, &weights);
                }
            }
            *output = requantized(acc, layer, first);
        }
    }
}

/// See [`Int8Kernels::layer_norm`]; bits of `FLIP` are flipped in each byte.
#[inline(always)]
pub fn layer_norm<const FLIP: i8>(values: &[i16], norm: &Norm, output: &mut [i8], root: impl Fn(u32) -> u32) {
    let reciprocal = reciprocal(norm.count);
    let channels = norm.channels.max(1);
    for (pixel, output) in values.chunks_exact(channels).zip(output.chunks_exact_mut(channels)) {
        let normalizer = normalizer(pixel, norm, reciprocal, &root);
        for (to, &value) in output.iter_mut().zip(pixel) {
            *to = saturate_i8(normalizer.apply(value)) ^ FLIP;
        }
    }
}

/// The inputs of a pixel, by four.
#[inline(always)]
fn groups(input: &[i8]) -> impl Iterator<Item = [i32; GROUP]> + Clone {
    input.as_chunks::<GROUP>().0.iter().map(|x| x.map(i32::from))
}

fn expand(input: &[i8], layer: &Dense<'_>, gelu_at: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let (inputs, outputs) = (layer.inputs.max(1), layer.outputs.max(1));
    for (input, output) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(outputs)) {
        dense(layer, groups(input), output.iter_mut().zip(squares.iter_mut()), |value, (index, squares)| {
            *index = saturate_i8(value + gelu_at.zero_point);
            let value = i32::from(gelu(gelu_at.table, *index));
            *squares += u64::from((value * value) as u32);
        });
    }
}

/// See [`Int8Kernels::activate`]; signed bytes.
#[inline(always)]
pub fn activate(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    for pixel in values.chunks_exact_mut(multipliers.len().max(1)) {
        for (value, &multiplier) in pixel.iter_mut().zip(multipliers) {
            *value = saturate_i8(multiply_q15(gelu(table, *value), multiplier));
        }
    }
}

/// See [`Int8Kernels::activate_split`]; bits of `FLIP` are flipped in each byte.
#[inline(always)]
pub fn activate_split<const FLIP: i8>(values: &mut [i8], table: &Table, multipliers: &[i16], low: &mut [i8]) {
    const ROUND: i32 = 1 << (SPLIT_SHIFT - 1);
    let channels = multipliers.len().max(1);
    for (pixel, low) in values.chunks_exact_mut(channels).zip(low.chunks_exact_mut(channels)) {
        for ((value, low), &multiplier) in pixel.iter_mut().zip(low).zip(multipliers) {
            let product = i32::from(gelu(table, *value)) * i32::from(multiplier);
            let wide = ((product + ROUND) >> SPLIT_SHIFT).clamp(-8192, 8191);
            *value = (wide >> LOW_BITS) as i8 ^ FLIP;
            *low = (wide & ((1 << LOW_BITS) - 1)) as i8 ^ FLIP;
        }
    }
}

fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let (inputs, outputs) = (layer.inputs.max(1), layer.outputs.max(1));
    for (input, residual) in input.chunks_exact(inputs).zip(residual.chunks_exact_mut(outputs)) {
        dense(layer, groups(input), residual, |update, value| *value = saturate_i16(i32::from(*value) + update));
    }
}

/// See [`Int8Kernels::square_roots`].
#[inline(always)]
pub fn square_roots(values: &mut [u32]) {
    for value in values {
        *value = isqrt32(*value);
    }
}

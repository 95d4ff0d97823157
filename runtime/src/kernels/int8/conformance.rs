//! Every set that this processor runs against the specification, `scalar.rs`: the same bits for random and for extreme shapes and values.
//!
//! The bytes between the functions that make a set's 8-bit inputs and those that use them belong to the set, so that the two are
//! compared as one: `layer_norm` then `expand`, `layer_norm` then `project`, `activate` then `project`, each with the set's own `prepare`.
//! What a set writes stands between values that no one may touch, at addresses that are aligned to nothing but the element.
//!
//! A set that the processor lacks is not tested. The environment variable `NADIR_EXPECT_KERNELS`, a list such as `scalar,neon`, makes
//! it an error if the sets are others than these.

extern crate std;

use super::*;
use crate::kernels::fixed::LayerNorm;
use scalar::SCALAR;
use std::vec::Vec;
use std::{format, vec};

/// xorshift64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Both ends included.
    fn within(&mut self, min: i64, max: i64) -> i64 {
        min + (self.bits() >> 1) as i64 % (max - min + 1)
    }

    fn size(&mut self, min: usize, max: usize) -> usize {
        self.within(min as i64, max as i64) as usize
    }

    fn among<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.size(0, of.len() - 1)]
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.bits().is_multiple_of(count)
    }

    /// A way of drawing values, drawn.
    fn fill(&mut self) -> Fill {
        self.among(&[Fill::All, Fill::All, Fill::All, Fill::Small, Fill::Ends, Fill::Min, Fill::Max])
    }

    fn values<T: TryFrom<i64>>(&mut self, count: usize, min: i64, max: i64, fill: Fill) -> Vec<T> {
        let mut value = || match fill {
            Fill::All => self.within(min, max),
            Fill::Small => self.within(-9, 9).clamp(min, max),
            Fill::Ends => self.among(&[min, min, max, max, 0i64.clamp(min, max)]),
            Fill::Min => min,
            Fill::Max => max,
        };
        (0..count).map(|_| T::try_from(value()).ok().expect("the limits fit the type")).collect()
    }

    fn i8s(&mut self, count: usize) -> Vec<i8> {
        let fill = self.fill();
        self.values(count, -128, 127, fill)
    }

    fn i16s(&mut self, count: usize) -> Vec<i16> {
        let fill = self.fill();
        self.values(count, -32768, 32767, fill)
    }

    fn i32s(&mut self, count: usize) -> Vec<i32> {
        let fill = self.fill();
        self.values(count, i32::MIN.into(), i32::MAX.into(), fill)
    }

    fn multipliers(&mut self, count: usize) -> Vec<i16> {
        let fill = self.fill();
        self.values(count, 0, 32767, fill)
    }

    fn table(&mut self) -> Table {
        let fill = self.fill();
        self.values(TABLE, -4095, 4095, fill).try_into().unwrap()
    }

    /// Half of them such that accumulators of `inputs` products survive.
    fn shift(&mut self, inputs: usize) -> u32 {
        if self.one_in(2) { self.within(0, 31) as u32 } else { inputs.ilog2() / 2 + self.within(0, 3) as u32 }
    }

    /// A norm of at most as many channels as there are; sometimes far fewer, so that all results can lie on one side of zero.
    fn norm(&mut self, channels: usize) -> Norm {
        let count = if self.one_in(4) { self.size(1, channels) } else { channels - self.size(0, 7) };
        let exponent = if self.one_in(2) { self.within(-64, 64) } else { self.within(-3, 6) };
        let epsilon = (self.bits() >> 2) >> self.within(0, 62);
        let gain = self.within(1 << 28, (1 << 29) - 1) as u32;
        Norm { constants: LayerNorm { gain, exponent: exponent as i32, epsilon }, count: count as u32, channels }
    }
}

/// How values are drawn.
#[derive(Clone, Copy)]
enum Fill {
    All,
    Small,
    Ends,
    Min,
    Max,
}

/// Values between guards, at an odd index.
struct Guarded<T> {
    all: Vec<T>,
    guard: T,
}

const GUARD: usize = 67;

impl<T: Copy + PartialEq + core::fmt::Debug> Guarded<T> {
    fn new(values: &[T], guard: T) -> Self {
        let edge = [guard; GUARD];
        Self { all: [&edge, values, &edge].concat(), guard }
    }

    fn get(&mut self) -> &mut [T] {
        let end = self.all.len() - GUARD;
        &mut self.all[GUARD..end]
    }

    fn take(self, what: &str) -> Vec<T> {
        let (before, rest) = self.all.split_at(GUARD);
        let (values, after) = rest.split_at(rest.len() - GUARD);
        assert!(before.iter().chain(after).all(|&v| v == self.guard), "{what}: wrote outside of its slice");
        values.to_vec()
    }
}

/// What `with` makes of `values` in place, between guards.
fn guarded<T: Copy + PartialEq + core::fmt::Debug>(
    values: &[T],
    guard: T,
    what: &str,
    with: impl FnOnce(&mut [T]),
) -> Vec<T> {
    let mut buffer = Guarded::new(values, guard);
    with(buffer.get());
    buffer.take(what)
}

fn same<T: PartialEq + core::fmt::Debug>(found: &[T], expected: &[T], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        panic!("{what}: value {i} is {:?}, by the specification {:?}", found[i], expected[i]);
    }
}

/// The sets other than the specification.
fn sets() -> impl Iterator<Item = &'static Int8Kernels> {
    Int8Kernels::available().filter(|set| set.name != SCALAR.name)
}

/// A matrix layer that owns its values.
#[derive(Clone)]
struct Layer {
    weight: Vec<i8>,
    bias: Vec<i32>,
    multiplier: Vec<i16>,
    shift: u32,
    inputs: usize,
    outputs: usize,
}

impl Layer {
    fn random(random: &mut Random, inputs: usize, outputs: usize) -> Self {
        let whole = outputs.next_multiple_of(PANEL);
        let mut weight = random.i8s(inputs * whole);
        for (i, weight) in weight.iter_mut().enumerate() {
            let output = i / (inputs * PANEL) * PANEL + i / GROUP % PANEL;
            if output >= outputs {
                *weight = 0;
            }
        }
        let mut bias = random.i32s(whole);
        if random.one_in(2) {
            bias.iter_mut().for_each(|b| *b >>= 12);
        }
        Self { weight, bias, multiplier: random.multipliers(whole), shift: random.shift(inputs), inputs, outputs }
    }

    fn dense(&self) -> Dense<'_> {
        let Self { weight, bias, multiplier, shift, inputs, outputs } = self;
        Dense { weight, bias, multiplier, shift: *shift, inputs: *inputs, outputs: *outputs }
    }

    fn prepared(&self, set: &Int8Kernels, what: &str) -> Vec<i32> {
        guarded(&vec![0x55; self.bias.len()], -3, what, |bias| (set.prepare)(&self.dense(), bias))
    }

    fn expand(
        &self,
        set: &Int8Kernels,
        input: &[i8],
        gelu: &Gelu<'_>,
        squares: &[u64],
        what: &str,
    ) -> (Vec<i8>, Vec<u64>) {
        let bias = self.prepared(set, what);
        let layer = Dense { bias: &bias, ..self.dense() };
        let mut sums = Guarded::new(squares, 77);
        let output = vec![0; input.len() / self.inputs * self.outputs];
        let output = guarded(&output, 99, what, |output| (set.expand)(input, &layer, gelu, output, sums.get()));
        (output, sums.take(what))
    }

    fn project(&self, set: &Int8Kernels, input: &[i8], residual: &[i16], what: &str) -> Vec<i16> {
        let bias = self.prepared(set, what);
        let layer = Dense { bias: &bias, ..self.dense() };
        guarded(residual, -99, what, |residual| (set.project)(input, &layer, residual))
    }
}

fn layer_norm(set: &Int8Kernels, values: &[i16], norm: &Norm, what: &str) -> Vec<i8> {
    guarded(&vec![0; values.len()], 99, what, |bytes| (set.layer_norm)(values, norm, bytes))
}

/// Channel counts: all small ones, and those of ConvNeXt V2.
fn channels(random: &mut Random) -> usize {
    if random.one_in(3) { random.among(&[40, 80, 96, 128, 160, 320]) } else { 8 * random.size(1, 12) }
}

fn pixels(random: &mut Random) -> usize {
    if random.one_in(4) { random.among(&[1, 49, MAX_STRIP]) } else { random.size(1, MAX_STRIP) }
}

#[test]
fn the_sets_are_those_expected() {
    let names: Vec<&str> = Int8Kernels::available().map(|set| set.name).collect();
    std::eprintln!("integer kernel sets of this processor: {names:?}; fastest: {:?}", Int8Kernels::detect());
    assert_eq!(names.first(), Some(&SCALAR.name));
    for name in &names {
        assert_eq!(Int8Kernels::by_name(name).map(|set| set.name), Some(*name));
    }
    if let Ok(expected) = std::env::var("NADIR_EXPECT_KERNELS") {
        assert_eq!(names, expected.split(',').collect::<Vec<_>>());
    }
}

#[test]
fn layer_norm_then_expand() {
    for set in sets() {
        let mut random = Random(1);
        for round in 0..240 {
            let (inputs, outputs, pixels) = (channels(&mut random), 32 * random.size(1, 12), pixels(&mut random));
            let what = format!("{} round {round}: {pixels} pixels, {inputs} to {outputs}", set.name);
            let layer = Layer::random(&mut random, inputs, outputs);
            let (norm, values, table) = (random.norm(inputs), random.i16s(pixels * inputs), random.table());
            let gelu = Gelu { zero_point: random.among(&[-128, 127, 0, 5, -77]), table: &table };
            let squares: Vec<u64> = (0..outputs).map(|_| random.bits() >> 20).collect();
            let [found, expected] = [set, &SCALAR].map(|set| {
                let bytes = layer_norm(set, &values, &norm, &what);
                layer.expand(set, &bytes, &gelu, &squares, &what)
            });
            same(&found.0, &expected.0, &what);
            same(&found.1, &expected.1, &what);
        }
    }
}

/// As a downsampling does it: the bytes of four pixels are the inputs of one.
#[test]
fn layer_norm_then_project() {
    for set in sets() {
        let mut random = Random(2);
        for round in 0..120 {
            let (before, outputs, pixels) = (8 * random.size(1, 12), channels(&mut random), random.size(1, 40));
            let what = format!("{} round {round}: {pixels} pixels, 4 times {before} to {outputs}", set.name);
            let layer = Layer::random(&mut random, 4 * before, outputs);
            let (norm, values) = (random.norm(before), random.i16s(pixels * 4 * before));
            let residual = random.i16s(pixels * outputs);
            let [found, expected] =
                [set, &SCALAR].map(|set| layer.project(set, &layer_norm(set, &values, &norm, &what), &residual, &what));
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn activate_then_project() {
    for set in sets() {
        let mut random = Random(3);
        for round in 0..240 {
            let (inputs, outputs, pixels) = (channels(&mut random), channels(&mut random), pixels(&mut random));
            let inputs = if random.one_in(2) { inputs } else { 4 * inputs };
            let what = format!("{} round {round}: {pixels} pixels, {inputs} to {outputs}", set.name);
            let layer = Layer::random(&mut random, inputs, outputs);
            let (indices, table) = (random.i8s(pixels * inputs), random.table());
            let fill = random.fill();
            let multipliers: Vec<i16> = random.values(inputs, -32767, 32767, fill);
            let residual = random.i16s(pixels * outputs);
            let [found, expected] = [set, &SCALAR].map(|set| {
                let bytes = guarded(&indices, 99, &what, |bytes| (set.activate)(bytes, &table, &multipliers));
                layer.project(set, &bytes, &residual, &what)
            });
            same(&found, &expected, &what);
        }
    }
}

/// Both halves of 14 bits, with the layer's shift and with that of the lower half.
#[test]
fn activate_split_then_project() {
    for set in sets() {
        let mut random = Random(11);
        for round in 0..240 {
            let (inputs, outputs, pixels) = (channels(&mut random), channels(&mut random), pixels(&mut random));
            let inputs = if random.one_in(2) { inputs } else { 4 * inputs };
            let what = format!("{} round {round}: {pixels} pixels, {inputs} to {outputs}", set.name);
            let mut layer = Layer::random(&mut random, inputs, outputs);
            layer.shift = layer.shift.min(31 - LOW_BITS);
            let (indices, table) = (random.i8s(pixels * inputs), random.table());
            let fill = random.fill();
            let multipliers: Vec<i16> = random.values(inputs, -32767, 32767, fill);
            let residual = random.i16s(pixels * outputs);
            let [found, expected] = [set, &SCALAR].map(|set| {
                let mut low = Guarded::new(&vec![0; indices.len()], 98);
                let split = |high: &mut [i8]| (set.activate_split)(high, &table, &multipliers, low.get());
                let high = guarded(&indices, 99, &what, split);
                let residual = layer.project(set, &high, &residual, &what);
                let lower = Layer { shift: layer.shift + LOW_BITS, ..layer.clone() };
                lower.project(set, &low.take(&what), &residual, &what)
            });
            same(&found, &expected, &what);
        }
    }
}

/// The specification against the text, in 64 bits.
#[test]
fn halves_make_14_bits() {
    let mut random = Random(12);
    let table = random.table();
    for multiplier in [-32767, -1, 0, 1, 500, 2049, 32767] {
        let indices: Vec<i8> = (-128..=127).collect();
        let (mut high, mut low) = (indices.clone(), vec![0; 256]);
        (SCALAR.activate_split)(&mut high, &table, &[multiplier; 256], &mut low);
        for ((&high, &low), index) in high.iter().zip(&low).zip(indices) {
            let h = f64::from(table[(i32::from(index) + 128) as usize]);
            let exact = (h * f64::from(multiplier) / 1024.0 + 0.5).floor().clamp(-8192.0, 8191.0);
            assert_eq!(64.0 * f64::from(high) + f64::from(low), exact, "index {index}, multiplier {multiplier}");
            assert!((0..64).contains(&low));
        }
    }
}

/// All inputs and all weights -128 or 127: the sums that are first to overflow a narrow accumulator.
#[test]
fn the_largest_products() {
    for set in sets() {
        for (value, weight) in [(-4095, -128), (-4095, 127), (4095, -128), (4095, 127)] {
            for inputs in [8, 16, 24, 320, 1280, 11264] {
                let what = format!("{}: {inputs} inputs of the sign of {value}, weights {weight}", set.name);
                let layer = Layer {
                    weight: vec![weight; 2 * inputs * PANEL],
                    bias: vec![0; 2 * PANEL],
                    multiplier: vec![32767; 2 * PANEL],
                    shift: inputs.ilog2() + 1,
                    inputs,
                    outputs: 2 * PANEL,
                };
                let (table, indices, multipliers) = ([value; TABLE], vec![0; 9 * inputs], vec![32767; inputs]);
                let (residual, gelu) = ([0; 18 * PANEL], Gelu { zero_point: 0, table: &table });
                // A mean over an eighth of the values lies beyond them all, so that they end on its other side.
                let constants = LayerNorm { gain: (1 << 29) - 1, exponent: 0, epsilon: 0 };
                let norm = Norm { constants, count: (inputs / 8) as u32, channels: inputs };
                let values = vec![-value; 9 * inputs];
                let [found, expected] = [set, &SCALAR].map(|set| {
                    let bytes = guarded(&indices, 99, &what, |bytes| (set.activate)(bytes, &table, &multipliers));
                    let normalised = layer_norm(set, &values, &norm, &what);
                    let expanded = layer.expand(set, &normalised, &gelu, &[0; 2 * PANEL], &what);
                    (
                        layer.project(set, &bytes, &residual, &what),
                        layer.project(set, &normalised, &residual, &what),
                        expanded,
                    )
                });
                assert!(expected.0.iter().all(|&v| v != 0) && expected.1.iter().all(|&v| v != 0));
                assert_eq!(found, expected, "{what}");
            }
        }
    }
}

#[test]
fn initial() {
    for set in sets() {
        let mut random = Random(4);
        for round in 0..120 {
            let (bands, outputs, pixels) = (random.size(1, 26), 8 * random.size(1, 6), random.size(1, 70));
            let what = format!("{} round {round}: {pixels} pixels, {bands} bands to {outputs}", set.name);
            let layer = Layer::random(&mut random, 3 * (3 * bands).next_multiple_of(GROUP), outputs);
            let rows = [0; 3].map(|_| random.i16s((pixels + 2) * bands + GROUP - 1));
            let [found, expected] = [set, &SCALAR].map(|set| {
                let rows = [0, 1, 2].map(|i| &rows[i][..]);
                guarded(&vec![0; pixels * outputs], -99, &what, |output| {
                    (set.initial)(rows, bands, &layer.dense(), output);
                })
            });
            same(&found, &expected, &what);
        }
    }
}

/// As a patchify stem calls it: patches in three parts, none of which two pixels share.
#[test]
fn initial_of_patches() {
    for set in sets() {
        let mut random = Random(5);
        for round in 0..60 {
            let (inputs, outputs, pixels) = (12 * random.size(1, 27), 8 * random.size(1, 6), random.size(1, 64));
            let what = format!("{} round {round}: {pixels} pixels, {inputs} inputs to {outputs}", set.name);
            let layer = Layer::random(&mut random, inputs, outputs);
            let patches = random.i16s(pixels * inputs);
            let [found, expected] = [set, &SCALAR].map(|set| {
                let parts = [0, 1, 2].map(|i| &patches[i * inputs / 3..]);
                guarded(&vec![0; pixels * outputs], -99, &what, |output| {
                    (set.initial)(parts, inputs, &layer.dense(), output);
                })
            });
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn input() {
    let odd = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        0.0,
        0.5,
        1.5,
        -0.5,
        1e30,
        -1e30,
        f32::MAX,
        f32::MIN_POSITIVE,
        7.0,
    ];
    for set in sets() {
        let mut random = Random(11);
        for round in 0..400 {
            let (count, stride) = (random.size(0, 50), random.size(1, 13));
            let values: Vec<f32> = (0..count)
                .map(|_| if random.one_in(4) { random.among(&odd) } else { random.within(-70000, 70000) as f32 / 8.0 })
                .collect();
            let no_data = random.among(&[
                None,
                Some(7.0),
                Some(0.0),
                Some(f32::NAN),
                Some(values.first().copied().unwrap_or(1.0)),
            ]);
            let mean = random.among(&[0.0, 0.25, 1000.0, f32::INFINITY]);
            let scale = random.among(&[1.0, 0.5, 256.0, 1e-3, 1e30, 0.0]);
            let band = FloatBand { mean, scale, no_data };
            // Shorter than what is written, the same, longer.
            let len = (count * stride).saturating_sub(random.size(0, 2 * stride)) + random.among(&[0, 0, stride, 40]);
            let what = format!(
                "{} round {round}: {count} values {stride} apart to {len}, {mean} {scale} {no_data:?}",
                set.name
            );
            let [found, expected] = [set, &SCALAR]
                .map(|set| guarded(&vec![11; len], -99, &what, |output| (set.input)(&values, &band, output, stride)));
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn stem() {
    for set in sets() {
        let mut random = Random(5);
        for round in 0..120 {
            let (side, channels, pixels) = (random.size(1, 5), 8 * random.size(1, 8), random.size(1, 40));
            let padding = random.size(0, side / 2);
            let width = (pixels * side).saturating_sub(2 * padding).max(1);
            let what = format!("{} round {round}: {pixels} pixels of side {side}, {channels} channels", set.name);
            let (weight, bias) = (random.i8s(side * side * channels), random.i32s(channels));
            let multiplier = random.multipliers(channels);
            let shift = random.shift(side * side * 256);
            let layer = Depthwise { weight: &weight, bias: &bias, multiplier: &multiplier, shift };
            let rows = random.i16s(side * width * channels);
            let [found, expected] = [set, &SCALAR].map(|set| {
                guarded(&vec![0; pixels * channels], -99, &what, |output| {
                    (set.stem)(&rows, side, padding, &layer, output);
                })
            });
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn depthwise() {
    for set in sets() {
        let mut random = Random(6);
        for round in 0..300 {
            let side = if round % 4 == 0 { random.among(&[7, 14, 28, 56, 64, 70]) } else { random.size(1, 20) };
            let channels = 8 * random.size(1, 6);
            let y = random.size(0, side - 1);
            // Whole rows, or a part of one row, of which what is above may have been overwritten.
            let one_row = side > MAX_STRIP || random.one_in(2);
            let (area, first) = if one_row {
                let x = random.size(0, side - 1);
                let end = random.size(x + 1, side.min(x + MAX_STRIP));
                (Area { y: y..y + 1, x: x..end }, random.among(&[0, y + 1]))
            } else {
                (Area { y: y..random.size(y + 1, side.min(y + MAX_STRIP / side)), x: 0..side }, 0)
            };
            let what = format!("{} round {round}: {area:?} of {side}, {channels} channels, from {first}", set.name);
            let (map, ring) = (random.i16s(side * side * channels), random.i16s(RING_ROWS * side * channels));
            let (weight, bias) = (random.i8s(49 * channels), random.i32s(channels));
            let (multiplier, shift) = (random.multipliers(channels), random.shift(49 * 1024));
            let layer = Depthwise { weight: &weight, bias: &bias, multiplier: &multiplier, shift };
            let rows = Rows { map: &map, ring: &ring, first, side, channels };
            let pixels = area.x.len() * area.y.len();
            let [found, expected] = [set, &SCALAR].map(|set| {
                guarded(&vec![0; pixels * channels], -99, &what, |output| {
                    (set.depthwise)(&rows, &area, &layer, output);
                })
            });
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn layer_norm_i16_affine_lookup() {
    for set in sets() {
        let mut random = Random(7);
        for round in 0..300 {
            let (channels, pixels) = (8 * random.size(1, 16), random.size(1, 70));
            let what = format!("{} round {round}: {pixels} pixels, {channels} channels", set.name);
            let values = random.i16s(pixels * channels);
            let (norm, table) = (random.norm(channels), random.table());
            let (mut gain, mut offset, shift) =
                (random.i32s(channels), random.i32s(channels), random.within(0, 31) as u32);
            if round % 2 == 0 {
                gain.iter_mut().chain(&mut offset).for_each(|v| *v >>= 16);
            }
            let with = |what: &str, f: &dyn Fn(&Int8Kernels, &mut [i16])| {
                let [found, expected] = [set, &SCALAR].map(|set| guarded(&values, -99, what, |values| f(set, values)));
                same(&found, &expected, what);
            };
            with(&format!("layer_norm_i16 of {what}"), &|set, values| (set.layer_norm_i16)(values, &norm));
            with(&format!("affine of {what}"), &|set, values| (set.affine)(values, &gain, &offset, shift));
            with(&format!("lookup of {what}"), &|set, values| (set.lookup)(values, &table));
            // Most values of the whole range saturate.
            let small: Vec<i16> = values.iter().map(|v| v >> 7).collect();
            let [found, expected] =
                [set, &SCALAR].map(|set| guarded(&small, -99, &what, |values| (set.lookup)(values, &table)));
            same(&found, &expected, &what);
        }
    }
}

#[test]
fn square_roots() {
    for set in sets() {
        let mut random = Random(8);
        let mut values: Vec<u32> = (0..5000).map(|_| (random.bits() >> random.within(32, 63)) as u32).collect();
        for root in [1u32, 2, 255, 256, 32767, 32768, 46340, 46341, 65534, 65535] {
            values.extend([root * root - 1, root * root, root * root + 1]);
        }
        values.extend([0, u32::MAX, u32::MAX - 1, 1 << 31, 1 << 30]);
        for count in [1, 2, 3, 4, 7, 8, 31, 32, 33, values.len()] {
            let [found, expected] = [set, &SCALAR]
                .map(|set| guarded(&values[values.len() - count..], 9, set.name, |v| (set.square_roots)(v)));
            same(&found, &expected, set.name);
        }
    }
}

/// Nothing to do is no error.
#[test]
fn no_pixels() {
    for set in sets() {
        let mut random = Random(9);
        let (layer, norm, table) = (Layer::random(&mut random, 16, 24), random.norm(16), random.table());
        (set.layer_norm)(&[], &norm, &mut []);
        (set.layer_norm_i16)(&mut [], &norm);
        (set.activate)(&mut [], &table, &[1; 16]);
        (set.activate_split)(&mut [], &table, &[1; 16], &mut []);
        (set.lookup)(&mut [], &table);
        (set.affine)(&mut [], &[1; 16], &[1; 16], 0);
        (set.square_roots)(&mut []);
        let mut squares = [5; 24];
        (set.expand)(&[], &layer.dense(), &Gelu { zero_point: 0, table: &table }, &mut [], &mut squares);
        assert_eq!(squares, [5; 24]);
        (set.project)(&[], &layer.dense(), &mut []);
    }
}

/// What is too short for the shapes given with it is not read beyond its end, nor a reason to panic. An empty slice points at nothing that can
/// be read, so that a kernel that trusted the shapes would crash here.
#[test]
fn short_slices() {
    for set in Int8Kernels::available() {
        let mut random = Random(10);
        let table = random.table();
        let gelu = Gelu { zero_point: 0, table: &table };
        let (wide, narrow, first) = (
            Layer::random(&mut random, 64, 96),
            Layer::random(&mut random, 64, 40),
            Layer::random(&mut random, 36, 40),
        );
        let short = |layer: &Layer| {
            let [mut weight, mut bias, mut multiplier] = [(); 3].map(|()| Layer {
                weight: layer.weight.clone(),
                ..Layer::random(&mut Random(1), layer.inputs, layer.outputs)
            });
            // New: an emptied vector still points at its old values.
            weight.weight = vec![];
            bias.bias = vec![];
            multiplier.multiplier = vec![];
            [weight, bias, multiplier]
        };
        let (input, row) = (vec![1; 64 * 64], vec![1; 66 * 4]);
        for layer in short(&wide) {
            (set.prepare)(&layer.dense(), &mut [0; 96]);
            (set.expand)(&input, &layer.dense(), &gelu, &mut vec![0; 64 * 96], &mut [0; 96]);
        }
        (set.expand)(&input, &wide.dense(), &gelu, &mut [], &mut []);
        for layer in short(&narrow) {
            (set.project)(&input, &layer.dense(), &mut vec![0; 64 * 40]);
        }
        (set.project)(&input, &narrow.dense(), &mut []);
        for layer in short(&first) {
            (set.initial)([&row; 3], 4, &layer.dense(), &mut vec![0; 64 * 40]);
        }
        (set.initial)([&row, &row, &[]], 4, &first.dense(), &mut vec![0; 64 * 40]);
        // Products of these overflow.
        (set.initial)([&row; 3], usize::MAX / 4 + 1, &first.dense(), &mut [0; 5 * 40]);
        let band = FloatBand { mean: 0.0, scale: 1.0, no_data: None };
        (set.input)(&[1.0; 32], &band, &mut [0; 20], usize::MAX / 15 + 1);

        let (weight, bias, multiplier) = (vec![1; 49 * 40], vec![1; 40], vec![1; 40]);
        let whole = Depthwise { weight: &weight, bias: &bias, multiplier: &multiplier, shift: 3 };
        let layers = [
            whole,
            Depthwise { weight: &[], ..whole },
            Depthwise { bias: &[], ..whole },
            Depthwise { multiplier: &[], ..whole },
        ];
        let map = vec![1; 20 * 20 * 40];
        for (index, layer) in layers.iter().enumerate() {
            for (map, ring, start) in [(&map[..], &[][..], 0), (&[], &[], 0), (&map, &[], 20), (&map[..1], &[], 0)] {
                if index == 0 && map.len() == 20 * 20 * 40 && start == 0 {
                    continue; // Nothing is missing.
                }
                let rows = Rows { map, ring, first: start, side: 20, channels: 40 };
                for area in [Area { y: 17..20, x: 0..20 }, Area { y: 19..20, x: 15..20 }] {
                    let output = &mut vec![0; area.y.len() * area.x.len() * 40];
                    (set.depthwise)(&rows, &area, layer, output);
                }
            }
            (set.stem)(if index == 0 { &[] } else { &map[..4 * 20 * 40] }, 4, 0, layer, &mut [0; 5 * 40]);
        }
        let norm = random.norm(40);
        (set.layer_norm)(&map[..80], &norm, &mut [0; 50]);
        (set.activate_split)(&mut [1; 80], &table, &[1; 40], &mut [0; 50]);
        (set.activate_split)(&mut [1; 80], &table, &[], &mut [0; 80]);
        (set.affine)(&mut [1; 80], &[1; 40], &[], 3);
    }
}

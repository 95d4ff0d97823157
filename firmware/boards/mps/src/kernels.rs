//! Compares every set of integer kernels of this processor with the scalar one, function by function, on random data.
//!
//! A failed comparison is named on the emulator's standard output, and ends the program with an error. Values are random over the
//! whole range that the interface allows, shapes include tails of every kind: one pixel, half a panel, more inputs than a
//! kernel takes at once, maps smaller than the depthwise kernel.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m_semihosting::hprintln;
use nadir::kernels::fixed::LayerNorm;
use nadir::kernels::int8::{Area, Dense, Depthwise, GROUP, Gelu, Int8Kernels, Norm, PANEL, RING_ROWS, Rows, Table};
use nadir::plan::int8::{Passes, Strips};

/// The most inputs and outputs of a matrix layer here, and pixels of a call.
const INPUTS: usize = 1000;
const OUTPUTS: usize = 208;
const PIXELS: usize = 64;
/// The most values of a map.
const MAP: usize = 70 * 70 * 16;

/// Random data and two places for results.
struct Memory {
    weight: [i8; INPUTS * OUTPUTS],
    bias: [i32; OUTPUTS],
    gain: [i32; OUTPUTS],
    multiplier: [i16; OUTPUTS],
    bytes: [i8; INPUTS * PIXELS],
    map: [i16; MAP],
    table: Table,
    found: Results,
    expected: Results,
}

struct Results {
    wide: [i16; MAP],
    bytes: [i8; INPUTS * PIXELS],
    squares: [u64; OUTPUTS],
    roots: [u32; OUTPUTS],
}

impl Results {
    const NEW: Self = Self { wide: [0; MAP], bytes: [0; INPUTS * PIXELS], squares: [0; OUTPUTS], roots: [0; OUTPUTS] };
}

struct Taken(AtomicBool, UnsafeCell<Memory>);

// SAFETY: the flag lets one user in.
unsafe impl Sync for Taken {}

static MEMORY: Taken = Taken(
    AtomicBool::new(false),
    UnsafeCell::new(Memory {
        weight: [0; INPUTS * OUTPUTS],
        bias: [0; OUTPUTS],
        gain: [0; OUTPUTS],
        multiplier: [0; OUTPUTS],
        bytes: [0; INPUTS * PIXELS],
        map: [0; MAP],
        table: [0; 256],
        found: Results::NEW,
        expected: Results::NEW,
    }),
);

/// Xorshift: the same values in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }
}

/// Whether a comparison failed, and how many there were.
struct Score {
    compared: usize,
    failed: usize,
}

impl Score {
    fn check(&mut self, set: &str, what: core::fmt::Arguments<'_>, equal: bool) {
        self.compared += 1;
        if !equal {
            self.failed += 1;
            hprintln!("{} differs from scalar: {}", set, what);
        }
    }
}

/// Compares all sets, and ends the program.
pub fn main() -> ! {
    if MEMORY.0.swap(true, Ordering::Relaxed) {
        crate::exit(false);
    }
    // SAFETY: nobody passes the line before twice.
    let memory = unsafe { &mut *MEMORY.1.get() };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    memory.weight.iter_mut().for_each(|v| *v = random.next() as i8);
    memory.bytes.iter_mut().for_each(|v| *v = random.next() as i8);
    memory.map.iter_mut().for_each(|v| *v = random.next() as i16);
    memory.multiplier.iter_mut().for_each(|v| *v = random.next() as i16 & i16::MAX);
    memory.gain.iter_mut().for_each(|v| *v = random.next() as i32 >> 12);
    memory.table.iter_mut().for_each(|v| *v = random.below(8191) as i16 - 4095);
    let mut failed = false;
    for set in Int8Kernels::available() {
        let mut score = Score { compared: 0, failed: 0 };
        // Large biases saturate, small ones do not.
        for bits in [0, 14, 31] {
            memory.bias.iter_mut().for_each(|v| *v = random.next() as i32 >> bits);
            dense(set, memory, &mut random, &mut score);
            convolutions(set, memory, &mut random, &mut score);
        }
        values(set, memory, &mut random, &mut score);
        hprintln!("{}: {} of {} comparisons equal", set.name, score.compared - score.failed, score.compared);
        failed |= score.failed > 0;
    }
    crate::exit(!failed)
}

fn scalar() -> &'static Int8Kernels {
    &nadir::kernels::int8::scalar::SCALAR
}

fn dense(set: &Int8Kernels, memory: &mut Memory, random: &mut Random, score: &mut Score) {
    let shapes: [(usize, usize); 9] =
        [(8, 8), (16, 24), (24, 96), (40, 40), (96, 24), (48, 200), (384, 16), (392, 72), (1000, 24)];
    for (inputs, outputs) in shapes {
        for pixels in [1, 2, 4, 5, 6, 7, 8, 11, 64] {
            if pixels == 64 && inputs * outputs > 4000 {
                continue;
            }
            let whole = outputs.next_multiple_of(PANEL);
            let layer = Dense {
                weight: &memory.weight[..whole * inputs],
                bias: &memory.bias[..whole],
                multiplier: &memory.multiplier[..whole],
                shift: random.below(14),
                inputs,
                outputs,
            };
            let mut bias = [0; OUTPUTS];
            (set.prepare)(&layer, &mut bias[..whole]);
            let prepared = Dense { bias: &bias[..whole], ..layer };
            let gelu = Gelu { zero_point: random.below(256) as i32 - 128, table: &memory.table };
            let input = &memory.bytes[..pixels * inputs];
            let count = pixels * outputs;
            for (set, layer, to) in [(set, &prepared, &mut memory.found), (scalar(), &layer, &mut memory.expected)] {
                to.wide[..count].copy_from_slice(&memory.map[..count]);
                (set.project)(input, layer, &mut to.wide[..count]);
                to.squares[..outputs].fill(7);
                (set.expand)(input, layer, &gelu, &mut to.bytes[..count], &mut to.squares[..outputs]);
            }
            let (found, expected) = (&memory.found, &memory.expected);
            let what = |name| (name, inputs, outputs, pixels, layer.shift);
            let equal = found.wide[..count] == expected.wide[..count];
            score.check(set.name, format_args!("{:?}", what("project")), equal);
            let equal = found.bytes[..count] == expected.bytes[..count];
            score.check(set.name, format_args!("{:?}", what("expand")), equal);
            let equal = found.squares[..outputs] == expected.squares[..outputs];
            score.check(set.name, format_args!("{:?}", what("squares")), equal);
        }
    }
}

fn convolutions(set: &Int8Kernels, memory: &mut Memory, random: &mut Random, score: &mut Score) {
    for bands in [1_usize, 2, 3, 5, 12] {
        for (pixels, outputs) in [(1_usize, 8_usize), (7, 24), (64, 40)] {
            let segment = (3 * bands).next_multiple_of(GROUP);
            let inputs = 3 * segment;
            let whole = outputs.next_multiple_of(PANEL);
            let layer = Dense {
                weight: &memory.weight[..whole * inputs],
                bias: &memory.bias[..whole],
                multiplier: &memory.multiplier[..whole],
                shift: random.below(24),
                inputs,
                outputs,
            };
            let rows = [0, 1, 2].map(|row| &memory.map[row * 1001..][..(pixels + 2) * bands + 3]);
            for (set, to) in [(set, &mut memory.found), (scalar(), &mut memory.expected)] {
                (set.initial)(rows, bands, &layer, &mut to.wide[..pixels * outputs]);
            }
            let equal = memory.found.wide[..pixels * outputs] == memory.expected.wide[..pixels * outputs];
            score.check(set.name, format_args!("initial {:?}", (bands, pixels, outputs)), equal);
        }
    }
    let channels = 24;
    for side in [1, 2, 4] {
        for padding in [0, side / 2] {
            let width = 16;
            let pixels = (width + 2 * padding) / side;
            let layer = Depthwise {
                weight: &memory.weight[..side * side * channels],
                bias: &memory.bias[..channels],
                multiplier: &memory.multiplier[..channels],
                shift: random.below(24),
            };
            for (set, to) in [(set, &mut memory.found), (scalar(), &mut memory.expected)] {
                let rows = &memory.map[..side * width * channels];
                (set.stem)(rows, side, padding, &layer, &mut to.wide[..pixels * channels]);
            }
            let equal = memory.found.wide[..pixels * channels] == memory.expected.wide[..pixels * channels];
            score.check(set.name, format_args!("stem {:?}", (side, padding)), equal);
        }
    }
    for (side, channels) in
        [(1, 8), (2, 16), (3, 8), (4, 24), (7, 16), (8, 40), (9, 8), (16, 8), (33, 8), (64, 8), (70, 8)]
    {
        for passes in [Passes::One, Passes::Two] {
            let strips = Strips::of(side, passes);
            for index in 0..strips.count() {
                let area: Area = strips.area(index);
                let layer = Depthwise {
                    weight: &memory.weight[..49 * channels],
                    bias: &memory.bias[..channels],
                    multiplier: &memory.multiplier[..channels],
                    shift: random.below(24),
                };
                let (map, ring) = memory.map.split_at(side * side * channels);
                let first = if passes == Passes::Two { area.y.start } else { 0 };
                let ring = if first > 0 && ring.len() >= RING_ROWS * side * channels { ring } else { &[] };
                let rows = Rows { map, ring, first: if ring.is_empty() { 0 } else { first }, side, channels };
                let count = area.y.len() * area.x.len() * channels;
                for (set, to) in [(set, &mut memory.found), (scalar(), &mut memory.expected)] {
                    (set.depthwise)(&rows, &area, &layer, &mut to.wide[..count]);
                }
                let equal = memory.found.wide[..count] == memory.expected.wide[..count];
                score.check(set.name, format_args!("depthwise {:?}", (side, channels, index)), equal);
            }
        }
    }
}

fn values(set: &Int8Kernels, memory: &mut Memory, random: &mut Random, score: &mut Score) {
    for (channels, count) in [(8, 5), (24, 24), (40, 33), (48, 48), (96, 96), (192, 192)] {
        for magnitude in [0, 4, 10] {
            let pixels = 7;
            let len = pixels * channels;
            let constants = LayerNorm {
                gain: (1 << 28) + random.below(1 << 28),
                exponent: 14 + random.below(12) as i32,
                epsilon: u64::from(random.next()) << 8,
            };
            let norm = Norm { constants, count, channels };
            let multipliers = &memory.multiplier[..channels];
            let source = |place: usize| {
                if place % channels < count as usize { memory.map[place] >> magnitude } else { 0 }
            };
            let shift = random.below(20);
            for (set, to) in [(set, &mut memory.found), (scalar(), &mut memory.expected)] {
                let Results { wide, bytes, roots, .. } = to;
                (0..len).for_each(|place| wide[place] = source(place));
                (set.layer_norm)(&wide[..len], &norm, &mut bytes[..len]);
                (set.layer_norm_i16)(&mut wide[..len], &norm);
                bytes[len..2 * len].copy_from_slice(&memory.bytes[..len]);
                (set.activate)(&mut bytes[len..2 * len], &memory.table, multipliers);
                (0..2 * len).for_each(|place| wide[len + place] = memory.map[place] >> magnitude);
                (set.affine)(&mut wide[len..2 * len], &memory.gain[..channels], &memory.bias[..channels], shift);
                (set.lookup)(&mut wide[2 * len..3 * len], &memory.table);
                (0..channels).for_each(|place| roots[place] = memory.gain[place] as u32 >> magnitude);
                (set.square_roots)(&mut roots[..channels]);
            }
            let (found, expected) = (&memory.found, &memory.expected);
            let what = |name| (name, channels, magnitude);
            let names = ["layer_norm_i16", "affine", "lookup"];
            for (name, range) in names.into_iter().zip([0..len, len..2 * len, 2 * len..3 * len]) {
                let equal = found.wide[range.clone()] == expected.wide[range];
                score.check(set.name, format_args!("{:?}", what(name)), equal);
            }
            // The bytes may differ in a set that says so; none of these does.
            for (name, range) in ["layer_norm", "activate"].into_iter().zip([0..len, len..2 * len]) {
                let equal = found.bytes[range.clone()] == expected.bytes[range];
                score.check(set.name, format_args!("{:?}", what(name)), equal);
            }
            let equal = found.roots[..channels] == expected.roots[..channels];
            score.check(set.name, format_args!("{:?}", what("square_roots")), equal);
        }
    }
}

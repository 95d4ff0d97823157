//! The int8 network map by map, written from `docs/integer-arithmetic.md` and not from the engine: in 128-bit integers, without the
//! engine's code or its order of steps. The engine is held against it bit for bit (`tests/integer_arithmetic.rs`), and reports look at
//! its maps.

mod arithmetic;

use std::cell::Cell;
use std::collections::BTreeMap;

use nadir::Tile;
use nadir::model::{Dtype, Model, Precision, STAGES, StemPadding};

use crate::reference::{BlockTap, DownsampleTap, Tap};
use arithmetic::*;

pub use arithmetic::Int;

/// A map of the network as [`Watcher`]s see it.
pub struct Seen<'a> {
    /// Channels that count; those behind them only fill up.
    pub channels: usize,
    /// Channels of a position.
    pub stored: usize,
    /// `[positions, stored]`.
    pub values: &'a [Int],
    /// Values, of those that count and those that fill up, that were cut off at the end of their range: for the maps of
    /// convolutions before their multiplier, for GELU at the upper end of its index.
    pub saturated: u64,
}

/// Looks at the maps of the network.
pub trait Watcher {
    /// The map at `tap`: the values of the place in units that only the quantizer knew.
    fn watch(&mut self, tap: Tap, seen: Seen<'_>);
}

/// Looks nowhere.
pub struct Nowhere;

impl Watcher for Nowhere {
    fn watch(&mut self, _: Tap, _: Seen<'_>) {}
}

/// An int8 model's sections by place and name.
pub struct Integers<'m> {
    model: &'m Model<'m>,
    weights: BTreeMap<(String, &'static str), &'m [i8]>,
    sections: BTreeMap<(String, &'static str), Vec<Int>>,
    /// Values cut off since the last map was shown.
    saturated: Cell<u64>,
}

impl<'m> Integers<'m> {
    /// The network of `model`; nothing for an f32 or f16 model.
    pub fn new(model: &'m Model<'m>) -> Option<Self> {
        if model.precision() != Precision::Int8 {
            return None;
        }
        let (mut weights, mut sections) = (BTreeMap::new(), BTreeMap::new());
        for index in 0..model.section_count() {
            let Some(spec) = model.expected(index) else { continue };
            let key = (spec.place.to_string(), spec.name);
            let values: Vec<Int> = match spec.dtype {
                Dtype::I8 => {
                    weights.insert(key, model.section::<i8>(index));
                    continue;
                }
                Dtype::I16 => model.section::<i16>(index).iter().map(|&v| v.into()).collect(),
                Dtype::I32 => model.section::<i32>(index).iter().map(|&v| v.into()).collect(),
                Dtype::I64 => model.section::<i64>(index).iter().map(|&v| v.into()).collect(),
                Dtype::F32 | Dtype::F16 => continue,
            };
            sections.insert(key, values);
        }
        Some(Self { model, weights, sections, saturated: Cell::new(0) })
    }

    fn get(&self, place: &str, name: &'static str) -> &[Int] {
        &self.sections[&(place.to_owned(), name)]
    }

    fn weight(&self, place: &str, name: &'static str) -> &[i8] {
        self.weights[&(place.to_owned(), name)]
    }

    /// Counts values beyond a limit.
    fn note(&self, values: &[Int], beyond: impl Fn(Int) -> bool) {
        let beyond = values.iter().filter(|v| beyond(**v)).count() as u64;
        self.saturated.set(self.saturated.get() + beyond);
    }

    fn scaled(&self, acc: &[Int], multiplier: &[Int], shift: Int) -> Vec<Int> {
        self.note(acc, |a| sat16(a >> shift) != a >> shift);
        acc.iter().zip(multiplier).map(|(&a, &m)| requantize(a, m, shift)).collect()
    }

    fn saturate(&self, values: Vec<Int>, to: fn(Int) -> Int) -> Vec<Int> {
        self.note(&values, |v| to(v) != v);
        each(values, to)
    }

    /// The entries of a GELU table. At the lower end of the index GELU is nothing, so that only the upper end loses something.
    fn table(&self, index: Vec<Int>, table: &[Int]) -> Vec<Int> {
        self.note(&index, |i| i > 127);
        each(index, |i| table[(sat8(i) + 128) as usize])
    }

    fn show(&self, watcher: &mut dyn Watcher, tap: Tap, channels: usize, map: &Map) {
        let saturated = self.saturated.take();
        watcher.watch(tap, Seen { channels, stored: map.channels, values: &map.values, saturated });
    }

    /// Section 2.
    fn input(&self, tile: Tile<'_>) -> Map {
        let side = usize::from(self.model.architecture().tile_size);
        let (m, o) = (self.get("stem", "input multiplier"), self.get("stem", "input offset"));
        let shift = self.get("stem", "constants")[0];
        let value = |b: usize, y: isize, x: isize| {
            let band = &self.model.bands()[b];
            let v = tile.value((b * side + y as usize) * side + x as usize).unwrap_or(f32::NAN);
            if !v.is_finite() || Some(v) == band.no_data {
                return 0;
            }
            match tile {
                Tile::F32(_) => ((v - band.mean) * (2048.0 / band.std)).round_ties_even() as i16 as Int,
                _ => ((v as Int * m[b] + o[b]) as i64 as Int) >> shift,
            }
        };
        let bands = self.model.bands().len();
        Map::new(side, bands, |y, x| self.saturate((0..bands).map(|b| value(b, y, x)).collect(), sat16))
    }

    /// Section 4.
    fn stem(&self, input: &Map, watcher: &mut dyn Watcher) -> Map {
        let get = |name| self.get("stem", name);
        let (arch, constants) = (self.model.architecture(), get("constants"));
        let (k, d) = (isize::from(arch.patch_size) / 8, usize::from(arch.dims[0]));
        let affine = |z: Vec<Int>, gain: &[Int], offset: &[Int], shift: Int| -> Vec<Int> {
            z.iter().enumerate().map(|(c, z)| wrap(z * gain[c] + offset[c]) >> shift).collect()
        };
        let residual = |stem: &Map, norm: &[Int], shift: Int| {
            stem.map(|y| {
                let z = self.saturate(layer_norm(y, d, norm), sat14);
                self.saturate(affine(z, get("stem norm gain"), get("stem norm offset"), shift), sat16)
            })
        };
        let (first, second) = match arch.stem_padding {
            StemPadding::Same => (1, 0),
            StemPadding::None => (0, k / 2),
            StemPadding::Patchify => {
                let stem = Map::new(input.side / k as usize, stored(d), |y, x| {
                    let mut patch = input.window(y * k, x * k, k);
                    patch.resize(patch.len().div_ceil(12) * 12, 0);
                    let acc = dense(&patch, self.weight("stem", "stem weight"), get("stem bias"), stored(d));
                    self.scaled(&acc, get("stem multiplier"), constants[1])
                });
                self.show(watcher, Tap::StemConvolution, d, &stem);
                let residual = residual(&stem, &constants[2..6], constants[6]);
                self.show(watcher, Tap::StemNorm, d, &residual);
                return residual;
            }
        };
        let side = input.side + 2 * first as usize - 2;
        let initial = Map::new(side, stored(d), |y, x| {
            let window = input.window(y - first, x - first, 3);
            // Each row of the window is filled up to a multiple of four; what stands there meets weights of any value, so that the
            // text has to say what it is: the values that follow in the padded row.
            let segment = (3 * input.channels).div_ceil(4) * 4;
            let mut filled = Vec::new();
            for row in 0..3 {
                filled.extend(&window[row * 3 * input.channels..][..3 * input.channels]);
                let mut after = (x - first + 3..x - first + 7).flat_map(|x| input.at(y - first + row as isize, x));
                filled.extend(after.by_ref().take(segment - 3 * input.channels));
            }
            let weight = self.weight("stem", "initial convolution weight");
            let acc = dense(&filled, weight, get("initial convolution bias"), stored(d));
            self.scaled(&acc, get("initial convolution multiplier"), constants[1])
        });
        self.show(watcher, Tap::InitialConvolution, d, &initial);
        let activation = initial.map(|y| {
            let z = self.saturate(layer_norm(y, d, &constants[2..6]), sat14);
            let index = affine(z, get("initial norm gain"), get("initial norm offset"), constants[6]);
            self.table(each(index, sat16), get("GELU table"))
        });
        self.show(watcher, Tap::InitialActivation, d, &activation);
        let grid = (side + 2 * second as usize - k as usize) / k as usize + 1;
        let stem = Map::new(grid, stored(d), |y, x| {
            let window = activation.window(y * k - second, x * k - second, k);
            let acc = depthwise(&window, self.weight("stem", "stem weight"), get("stem bias"));
            self.scaled(&acc, get("stem multiplier"), constants[7])
        });
        self.show(watcher, Tap::StemConvolution, d, &stem);
        let residual = residual(&stem, &constants[8..12], constants[12]);
        self.show(watcher, Tap::StemNorm, d, &residual);
        residual
    }

    /// Section 5; `channels` count.
    fn block(&self, (stage, block): (usize, usize), x: &Map, channels: usize, watcher: &mut dyn Watcher) -> Map {
        let place = format!("block {stage}.{block}");
        let tap = |part| Tap::Block { stage, block, part };
        let (get, weight) = (|name| self.get(&place, name), |name| self.weight(&place, name));
        let (k, wide) = (get("constants"), 4 * x.channels);
        let spatial = Map::new(x.side, x.channels, |row, column| {
            let window = x.window(row - 3, column - 3, 7);
            let acc = depthwise(&window, weight("depthwise weight"), get("depthwise bias"));
            self.scaled(&acc, get("depthwise multiplier"), k[0])
        });
        self.show(watcher, tap(BlockTap::Depthwise), channels, &spatial);
        let normalised = spatial.map(|y| self.saturate(layer_norm(y, channels, &k[1..5]), sat8));
        self.show(watcher, tap(BlockTap::Normalised), channels, &normalised);
        let hidden = normalised.map(|z| {
            let acc = dense(z, weight("pointwise 1 weight"), get("pointwise 1 bias"), wide);
            // What saturates here saturates as an index too.
            let scaled = acc.iter().zip(get("pointwise 1 multiplier")).map(|(&a, &m)| requantize(a, m, k[5]) + k[6]);
            self.table(scaled.collect(), get("GELU table"))
        });
        self.show(watcher, tap(BlockTap::Activation), 4 * channels, &hidden);
        let multipliers = self.response_norm(&place, &hidden, channels);
        let raised = k[9] >= 32;
        let projected = hidden.map(|h| {
            let p = h.iter().zip(&multipliers);
            if raised {
                self.saturate(p.map(|(h, m)| (h * m + (1 << 9)) >> 10).collect(), sat14)
            } else {
                self.saturate(p.map(|(h, m)| (h * m + (1 << 14)) >> 15).collect(), sat8)
            }
        });
        self.show(watcher, tap(BlockTap::GrnOutput), 4 * channels, &projected);
        let update = |inputs: &Map, shift: Int| {
            inputs.map(|p| {
                let acc = dense(p, weight("pointwise 2 weight"), get("pointwise 2 bias"), x.channels);
                self.scaled(&acc, get("pointwise 2 multiplier"), shift)
            })
        };
        let parts = if raised {
            let part = |of: fn(Int) -> Int| projected.map(|p| each(p.to_vec(), of));
            vec![update(&part(|p| p >> 6), k[9] - 32), update(&part(|p| p & 63), k[9] - 26)]
        } else {
            vec![update(&projected, k[9])]
        };
        let mut values = vec![0; x.values.len()];
        for part in &parts {
            values.iter_mut().zip(&part.values).for_each(|(sum, u)| *sum += u);
        }
        self.show(watcher, tap(BlockTap::Pointwise2), channels, &Map { values, ..*x });
        let mut output = Map { values: x.values.clone(), ..*x };
        for part in &parts {
            let sum = output.values.iter().zip(&part.values).map(|(x, u)| x + u).collect();
            output.values = self.saturate(sum, sat16);
        }
        self.show(watcher, tap(BlockTap::Output), channels, &output);
        output
    }

    /// Section 5.4: the multiplier of each channel.
    fn response_norm(&self, place: &str, hidden: &Map, channels: usize) -> Vec<Int> {
        let wide = hidden.channels;
        let mut squares = vec![0; wide];
        hidden.pixels().for_each(|pixel| squares.iter_mut().zip(pixel).for_each(|(s, h)| *s += h * h));
        let norm = |s: Int| {
            let t = even_shift(s.max(1));
            shifted(isqrt(shifted(s, t)) << 8, -t / 2)
        };
        let k = self.get(place, "constants");
        let norms = each(squares, norm);
        let total = (norms.iter().sum::<Int>() + wide_word(k[7], k[8])).max(1);
        let up = (-62..=62).find(|&t| (1 << 31..1 << 32).contains(&shifted(total, t))).unwrap_or(62);
        let reciprocal = ((1 << 63) - 1) / shifted(total, up);
        let (gain, slope) = (self.get(place, "GRN gain"), self.get(place, "GRN slope"));
        let multiplier = |c: usize| {
            let share = (shifted(norms[c], up) * reciprocal) >> 31;
            let ratio = (share * 4 * channels as Int) >> 16;
            (gain[c] + ((slope[c] * ratio + (1 << 15)) >> 16)).clamp(-32767, 32767)
        };
        (0..wide).map(multiplier).collect()
    }

    /// Section 6, before `stage`; `before` channels count, then `channels`.
    fn downsample(&self, stage: usize, x: &Map, before: usize, channels: usize, watcher: &mut dyn Watcher) -> Map {
        let place = format!("downsample {stage}");
        let get = |name| self.get(&place, name);
        let k = get("constants");
        let normalised = x.map(|pixel| self.saturate(layer_norm(pixel, before, &k[..4]), sat8));
        self.show(watcher, Tap::Downsample { stage, part: DownsampleTap::Normalised }, before, &normalised);
        let output = Map::new(x.side / 2, stored(channels), |y, x| {
            let window = normalised.window(2 * y, 2 * x, 2);
            let weight = self.weight(&place, "convolution weight");
            let acc = dense(&window, weight, get("convolution bias"), stored(channels));
            self.scaled(&acc, get("convolution multiplier"), k[4])
        });
        self.show(watcher, Tap::Downsample { stage, part: DownsampleTap::Output }, channels, &output);
        output
    }

    /// Section 7.
    fn head(&self, x: &Map, watcher: &mut dyn Watcher) -> Vec<f32> {
        let (gain, offset) = (self.get("head", "norm gain"), self.get("head", "norm offset"));
        let constants = self.get("head", "constants");
        let [low, high, shift, bits] = [constants[0], constants[1], constants[2], constants[3]];
        let area = (x.side * x.side) as Int;
        let mean = |channel: usize| {
            let sum: Int = x.pixels().map(|pixel| pixel[channel]).sum();
            (16 * sum + area / 2).div_euclid(area)
        };
        let channels = x.channels.min(self.model.embedding_dimension());
        let (c, p) = (channels as Int, (0..channels).map(mean).collect::<Vec<Int>>());
        let pooled = Map { side: 1, channels, values: p };
        self.show(watcher, Tap::Pooled, channels, &pooled);
        let p = pooled.values;
        let sum: Int = p.iter().sum();
        let v = (c * p.iter().map(|p| p * p).sum::<Int>() - sum * sum + wide_word(low, high)).max(1);
        let t = (0..64).step_by(2).rev().find(|&t| v << t < 1 << 64).unwrap_or(0);
        let r = isqrt(v << t);
        let value = |(i, p): (usize, &Int)| {
            // `/` rounds towards zero.
            let z = ((c * p - sum) << (16 + t / 2)) / r;
            (z * gain[i] + offset[i]) as i64 as Int >> shift
        };
        let values = self.saturate(p.iter().enumerate().map(value).collect(), sat16);
        let embedding = Map { side: 1, channels, values };
        self.show(watcher, Tap::Embedding, channels, &embedding);
        embedding.values.iter().map(|&e| e as f32 * 2f32.powi(-(bits as i32))).collect()
    }

    /// The embedding of one tile `[bands, height, width]`; every map is shown to `watcher`.
    ///
    /// # Panics
    /// In a debug build, if an intermediate value leaves the range that the text says.
    pub fn embed(&self, tile: Tile<'_>, watcher: &mut dyn Watcher) -> Vec<f32> {
        let arch = self.model.architecture();
        let input = self.input(tile);
        self.show(watcher, Tap::Input, input.channels, &input);
        let mut x = self.stem(&input, watcher);
        for stage in 0..STAGES {
            let channels = usize::from(arch.dims[stage]);
            if stage > 0 {
                x = self.downsample(stage, &x, arch.dims[stage - 1].into(), channels, watcher);
            }
            for block in 0..usize::from(arch.depths[stage]) {
                x = self.block((stage, block), &x, channels, watcher);
            }
        }
        self.head(&x, watcher)
    }

    /// What the channels at `tap` are divided by beside the place's scale: GRN's output by the balance of the second pointwise layer,
    /// known but for a common factor. Nothing where it is the same for all.
    pub fn divisors(&self, tap: Tap) -> Option<Vec<f64>> {
        let Tap::Block { stage, block, part: BlockTap::GrnOutput } = tap else { return None };
        let gain = self.get(&format!("block {stage}.{block}"), "GRN gain");
        Some(gain.iter().map(|&gain| 1.0 / gain.max(1) as f64).collect())
    }
}

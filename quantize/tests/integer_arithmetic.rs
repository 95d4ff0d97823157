//! The int8 engine against `docs/integer-arithmetic.md`, bit for bit.
//!
//! The program below was written from the text, in 128-bit integers and without the engine's code or its order of steps: where the two
//! differ, one of them is not what the text says.

use std::collections::BTreeMap;

use nadir::Tile;
use nadir::encoder::Encoder as Engine;
use nadir::model::{Architecture, Dtype, Model, ModelError, Place, STAGES, StemPadding};
use nadir_formats::{AlignedBytes, Encoder, Pixels, Tiles};
use nadir_quantize::int8::convert;
use nadir_quantize::testing::{Random, random_encoder, random_tiles};
use nadir_quantize::writer::{SectionData, write_model};

type Int = i128;

fn sat8(x: Int) -> Int {
    x.clamp(-128, 127)
}

fn sat16(x: Int) -> Int {
    x.clamp(-32768, 32767)
}

fn requantize(a: Int, m: Int, s: Int) -> Int {
    (sat16(a >> s) * m + (1 << 14)) >> 15
}

/// Channel counts as they are stored.
fn stored(channels: usize) -> usize {
    channels.div_ceil(8) * 8
}

fn isqrt(x: Int) -> Int {
    x.unsigned_abs().isqrt() as Int
}

/// Two words, low first.
fn wide_word(low: Int, high: Int) -> Int {
    (low & 0xffff_ffff) + (high << 32)
}

/// `v >> t`, to the left for a negative `t`.
fn shifted(v: Int, t: Int) -> Int {
    if t < 0 { v << -t } else { v >> t }
}

/// Section 3: gain, exponent, epsilon low, epsilon high; `c` channels count.
fn layer_norm(x: &[Int], c: usize, constants: &[Int]) -> Vec<Int> {
    let &[g, e, low, high] = constants else { panic!("four constants") };
    let c = c as Int;
    let sum: Int = x.iter().sum();
    let squares: Int = x.iter().map(|x| x * x).sum();
    let v = ((c * squares - sum * sum).max(0) + wide_word(low, high)).max(1);
    let t = (-62..=62).step_by(2).find(|&t| (1 << 30..1 << 32).contains(&shifted(v, t))).unwrap();
    let r = isqrt(shifted(v, t));
    assert!((1 << 15..1 << 16).contains(&r));
    let a = (g + r / 2) / r;
    let n = (e + t / 2).clamp(1, 30);
    let reciprocal = ((1 << 31) + c / 2) / c;
    let u = (sum * reciprocal) >> 16;
    let b = wrap((1 << (n - 1)) - ((u * a) >> 15));
    // Only channels that do not count and are not zero can make it overflow.
    let fits = |v: &Int| assert!(x.len() > c as usize || i32::try_from(*v).is_ok(), "in 32 bits");
    x.iter().map(|x| x * a + b).inspect(fits).map(|v| wrap(v) >> n).collect()
}

/// `[height, width, channels]`.
struct Map {
    side: usize,
    channels: usize,
    values: Vec<Int>,
}

impl Map {
    fn new(side: usize, channels: usize, mut pixel: impl FnMut(isize, isize) -> Vec<Int>) -> Self {
        let places = (0..side * side).map(|i| ((i / side) as isize, (i % side) as isize));
        let values: Vec<Int> = places.flat_map(|(y, x)| pixel(y, x)).collect();
        assert_eq!(values.len(), side * side * channels);
        Self { side, channels, values }
    }

    fn pixels(&self) -> impl Iterator<Item = &[Int]> {
        self.values.chunks_exact(self.channels)
    }

    /// Zeros outside.
    fn at(&self, y: isize, x: isize) -> Vec<Int> {
        let inside = |v: isize| (0..self.side as isize).contains(&v);
        let index = || (y as usize * self.side + x as usize) * self.channels;
        if inside(y) && inside(x) { self.values[index()..][..self.channels].to_vec() } else { vec![0; self.channels] }
    }

    /// The `k` x `k` pixels from (y, x) on, one after the other.
    fn window(&self, y: isize, x: isize, k: isize) -> Vec<Int> {
        (0..k * k).flat_map(|tap| self.at(y + tap / k, x + tap % k)).collect()
    }

    /// Every pixel by itself.
    fn map(&self, f: impl Fn(&[Int]) -> Vec<Int>) -> Self {
        let values: Vec<Int> = self.pixels().flat_map(f).collect();
        Self { side: self.side, channels: values.len() / (self.side * self.side), values }
    }
}

/// Accumulators of i32, which wrap.
fn wrap(acc: Int) -> Int {
    acc as i32 as Int
}

/// Weights in panels of sixteen outputs and groups of four inputs; as many outputs as `outputs`.
fn dense(x: &[Int], weight: &[Int], bias: &[Int], outputs: usize) -> Vec<Int> {
    let at = |o: usize, i: usize| (o / 16 * x.len() / 4 + i / 4) * 64 + o % 16 * 4 + i % 4;
    let dot = |o: usize| x.iter().enumerate().map(|(i, x)| weight[at(o, i)] * x).sum::<Int>();
    (0..outputs).map(|o| wrap(bias[o] + dot(o))).collect()
}

/// Weights `[tap, channel]` over a window of as many taps.
fn depthwise(window: &[Int], weight: &[Int], bias: &[Int]) -> Vec<Int> {
    let c = bias.len();
    let sum = |i: usize| (i..window.len()).step_by(c).map(|at| window[at] * weight[at]).sum::<Int>();
    (0..c).map(|i| wrap(bias[i] + sum(i))).collect()
}

fn scaled(acc: &[Int], multiplier: &[Int], shift: Int) -> Vec<Int> {
    acc.iter().zip(multiplier).map(|(&a, &m)| requantize(a, m, shift)).collect()
}

fn each(x: Vec<Int>, f: impl Fn(Int) -> Int) -> Vec<Int> {
    x.into_iter().map(f).collect()
}

/// A model's sections by place and name.
struct Text<'m> {
    model: &'m Model<'m>,
    sections: BTreeMap<(String, &'static str), Vec<Int>>,
}

impl<'m> Text<'m> {
    fn new(model: &'m Model<'m>) -> Self {
        let section = |i: usize| {
            let spec = model.expected(i).unwrap();
            let values: Vec<Int> = match spec.dtype {
                Dtype::I8 => model.section::<i8>(i).iter().map(|&v| v.into()).collect(),
                Dtype::I16 => model.section::<i16>(i).iter().map(|&v| v.into()).collect(),
                Dtype::I32 => model.section::<i32>(i).iter().map(|&v| v.into()).collect(),
                Dtype::I64 => model.section::<i64>(i).iter().map(|&v| v.into()).collect(),
                other => panic!("{other} in an int8 model"),
            };
            ((spec.place.to_string(), spec.name), values)
        };
        Self { model, sections: (0..model.section_count()).map(section).collect() }
    }

    fn get(&self, place: &str, name: &'static str) -> &[Int] {
        &self.sections[&(place.to_owned(), name)]
    }

    /// Section 2.
    fn input(&self, tile: Tile<'_>) -> Map {
        let side = usize::from(self.model.architecture().tile_size);
        let (m, o) = (self.get("stem", "input multiplier"), self.get("stem", "input offset"));
        let shift = self.get("stem", "constants")[0];
        let value = |b: usize, y: isize, x: isize| {
            let band = &self.model.bands()[b];
            let v = tile.value((b * side + y as usize) * side + x as usize).unwrap();
            if !v.is_finite() || Some(v) == band.no_data {
                return 0;
            }
            match tile {
                Tile::F32(_) => ((v - band.mean) * (2048.0 / band.std)).round_ties_even() as i16 as Int,
                _ => sat16((v as Int * m[b] + o[b]) as i64 as Int >> shift),
            }
        };
        let bands = self.model.bands().len();
        Map::new(side, bands, |y, x| (0..bands).map(|b| value(b, y, x)).collect())
    }

    /// Section 4.
    fn stem(&self, input: &Map) -> Map {
        let get = |name| self.get("stem", name);
        let (arch, constants) = (self.model.architecture(), get("constants"));
        let (k, d) = (isize::from(arch.patch_size) / 8, usize::from(arch.dims[0]));
        let (first, second) = match arch.stem_padding {
            StemPadding::Same => (1, 0),
            StemPadding::None => (0, k / 2),
        };
        let side = input.side + 2 * first as usize - 2;
        let affine = |z: Vec<Int>, gain: &[Int], offset: &[Int], shift: Int| -> Vec<Int> {
            z.iter().enumerate().map(|(c, z)| sat16(wrap(z * gain[c] + offset[c]) >> shift)).collect()
        };
        let sat14 = |v: Int| v.clamp(-8192, 8191);
        let activation = Map::new(side, stored(d), |y, x| {
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
            let acc = dense(&filled, get("initial convolution weight"), get("initial convolution bias"), stored(d));
            let y = scaled(&acc, get("initial convolution multiplier"), constants[1]);
            let z = each(layer_norm(&y, d, &constants[2..6]), sat14);
            let index = affine(z, get("initial norm gain"), get("initial norm offset"), constants[6]);
            each(index, |i| get("GELU table")[(sat8(i) + 128) as usize])
        });
        let grid = (side + 2 * second as usize - k as usize) / k as usize + 1;
        Map::new(grid, stored(d), |y, x| {
            let window = activation.window(y * k - second, x * k - second, k);
            let acc = depthwise(&window, get("stem weight"), get("stem bias"));
            let y = scaled(&acc, get("stem multiplier"), constants[7]);
            let z = each(layer_norm(&y, d, &constants[8..12]), sat14);
            affine(z, get("stem norm gain"), get("stem norm offset"), constants[12])
        })
    }

    /// Section 5; `channels` count.
    fn block(&self, place: &str, x: &Map, channels: usize) -> Map {
        let get = |name| self.get(place, name);
        let k = get("constants");
        let wide = 4 * x.channels;
        let hidden = Map::new(x.side, wide, |row, column| {
            let window = x.window(row - 3, column - 3, 7);
            let acc = depthwise(&window, get("depthwise weight"), get("depthwise bias"));
            let y = scaled(&acc, get("depthwise multiplier"), k[0]);
            let z = each(layer_norm(&y, channels, &k[1..5]), sat8);
            let acc = dense(&z, get("pointwise 1 weight"), get("pointwise 1 bias"), wide);
            let index = scaled(&acc, get("pointwise 1 multiplier"), k[5]);
            each(index, |i| get("GELU table")[(sat8(i + k[6]) + 128) as usize])
        });
        let mut squares = vec![0; wide];
        hidden.pixels().for_each(|pixel| squares.iter_mut().zip(pixel).for_each(|(s, h)| *s += h * h));
        let norm = |s: Int| {
            let t = (-62..=62).step_by(2).find(|&t| (1 << 30..1 << 32).contains(&shifted(s.max(1), t))).unwrap();
            shifted(isqrt(shifted(s, t)) << 8, -t / 2)
        };
        let norms = each(squares, norm);
        let total = (norms.iter().sum::<Int>() + wide_word(k[7], k[8])).max(1);
        let up = (-62..=62).find(|&t| (1 << 31..1 << 32).contains(&shifted(total, t))).unwrap();
        let reciprocal = ((1 << 63) - 1) / shifted(total, up);
        let (gain, slope) = (get("GRN gain"), get("GRN slope"));
        let multiplier = |c: usize| {
            let share = (shifted(norms[c], up) * reciprocal) >> 31;
            let ratio = (share * 4 * channels as Int) >> 16;
            (gain[c] + ((slope[c] * ratio + (1 << 15)) >> 16)).clamp(-32767, 32767)
        };
        let multipliers: Vec<Int> = (0..wide).map(multiplier).collect();
        let update = hidden.map(|h| {
            let p = h.iter().zip(&multipliers).map(|(h, m)| sat8((h * m + (1 << 14)) >> 15)).collect::<Vec<_>>();
            let acc = dense(&p, get("pointwise 2 weight"), get("pointwise 2 bias"), x.channels);
            scaled(&acc, get("pointwise 2 multiplier"), k[9])
        });
        let values = x.values.iter().zip(&update.values).map(|(x, u)| sat16(x + u)).collect();
        Map { values, ..*x }
    }

    /// Section 6; `before` channels count.
    fn downsample(&self, place: &str, x: &Map, before: usize, channels: usize) -> Map {
        let get = |name| self.get(place, name);
        let k = get("constants");
        let normalised = x.map(|pixel| each(layer_norm(pixel, before, &k[..4]), sat8));
        Map::new(x.side / 2, stored(channels), |y, x| {
            let window = normalised.window(2 * y, 2 * x, 2);
            let acc = dense(&window, get("convolution weight"), get("convolution bias"), stored(channels));
            scaled(&acc, get("convolution multiplier"), k[4])
        })
    }

    /// Section 7.
    fn head(&self, x: &Map) -> Vec<f32> {
        let (gain, offset) = (self.get("head", "norm gain"), self.get("head", "norm offset"));
        let &[low, high, shift, bits] = self.get("head", "constants") else { panic!("four constants") };
        let (c, area) = (x.channels as Int, (x.side * x.side) as Int);
        let mean = |channel: usize| {
            let sum: Int = x.pixels().map(|pixel| pixel[channel]).sum();
            (16 * sum + area / 2).div_euclid(area)
        };
        let c = c.min(self.model.embedding_dimension() as Int);
        let p: Vec<Int> = (0..c as usize).map(mean).collect();
        let sum: Int = p.iter().sum();
        let v = (c * p.iter().map(|p| p * p).sum::<Int>() - sum * sum + wide_word(low, high)).max(1);
        let t = (0..64).step_by(2).rev().find(|&t| v << t < 1 << 64).unwrap();
        let r = isqrt(v << t);
        let value = |(i, p): (usize, &Int)| {
            // `/` rounds towards zero.
            let z = ((c * p - sum) << (16 + t / 2)) / r;
            let e = sat16((z * gain[i] + offset[i]) as i64 as Int >> shift);
            e as f32 * 2f32.powi(-(bits as i32))
        };
        p.iter().enumerate().map(value).collect()
    }

    fn embed(&self, tile: Tile<'_>) -> Vec<f32> {
        let arch = self.model.architecture();
        let mut x = self.stem(&self.input(tile));
        for stage in 0..STAGES {
            if stage > 0 {
                let (before, channels) = (arch.dims[stage - 1].into(), arch.dims[stage].into());
                x = self.downsample(&format!("downsample {stage}"), &x, before, channels);
            }
            for block in 0..arch.depths[stage] {
                x = self.block(&format!("block {stage}.{block}"), &x, arch.dims[stage].into());
            }
        }
        self.head(&x)
    }
}

/// The engine's embedding, from an arena full of anything.
fn engine(model: &Model<'_>, tile: Tile<'_>) -> Vec<f32> {
    let engine = Engine::new(model);
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    arena.fill(0xa5);
    let mut embedding = vec![0.0; model.embedding_dimension()];
    engine.embed(tile, &mut arena, &mut embedding).unwrap();
    embedding
}

fn same(model: &Model<'_>, tile: Tile<'_>, what: &str) {
    let (found, expected) = (engine(model, tile), Text::new(model).embed(tile));
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{what}: value {i} is {f}, by the text {e}");
    }
}

/// The tile as u16, and as f32 with values that are not finite in place of some; the 8-bit values hold "no data".
fn other_types(tiles: &Tiles) -> Vec<Tiles> {
    let Pixels::U8(bytes) = &tiles.pixels else { unreachable!("tiles of bytes") };
    let wide = bytes.iter().map(|&v| u16::from(v) * 257).collect();
    let mut floats: Vec<f32> = bytes.iter().map(|&v| f32::from(v) * 1.37 - 20.0).collect();
    floats[5] = f32::NAN;
    floats[6] = f32::NEG_INFINITY;
    floats[7] = f32::MAX;
    [Pixels::U16(wide), Pixels::F32(floats)].map(|pixels| Tiles { shape: tiles.shape, pixels }).into()
}

#[test]
fn the_engine_follows_the_text() {
    let small = Architecture { dims: [6, 9, 12, 17], ..Architecture::named("yocto", 32, 16).unwrap() };
    for (tile_size, patch_size, stem_padding, bands) in [
        (32, 16, StemPadding::Same, 3),
        (21, 8, StemPadding::Same, 1),
        (23, 8, StemPadding::None, 2),
        (37, 16, StemPadding::None, 4),
        (66, 32, StemPadding::Same, 2),
        (75, 32, StemPadding::None, 3),
    ] {
        let architecture = Architecture { tile_size, patch_size, stem_padding, ..small };
        let names = ["B4", "B3", "B2", "B8A"];
        let encoder = random_encoder(architecture, &names[..bands], 3);
        let mut tiles = random_tiles(3, bands, tile_size.into(), 4);
        let Pixels::U8(bytes) = &mut tiles.pixels else { unreachable!("tiles of bytes") };
        bytes[40..90].fill(0);
        let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
        let model = Model::parse(&file).unwrap();
        let what = format!("{tile_size}/{patch_size} {stem_padding:?} {bands} bands");
        same(&model, tiles.tile(0), &what);
        other_types(&tiles).iter().for_each(|tiles| same(&model, tiles.tile(0), &what));
        let (one, other) = (engine(&model, tiles.tile(0)), engine(&model, tiles.tile(1)));
        assert!(one != other && one.iter().any(|&v| v != one[0]), "{what}: embeddings tell tiles apart");
    }
}

fn hostile_base() -> (Encoder, Tiles) {
    let architecture = Architecture { dims: [6, 8, 13, 24], ..Architecture::named("yocto", 32, 16).unwrap() };
    (random_encoder(architecture, &["B2", "B3"], 1), random_tiles(2, 2, 32, 1))
}

/// Section 8's limits of the constants of a unit, in order.
fn limits(place: Place) -> Vec<(i32, i32)> {
    const SHIFT: (i32, i32) = (0, 31);
    const WIDE_SHIFT: (i32, i32) = (1, 62);
    const WIDE: [(i32, i32); 2] = [(i32::MIN, i32::MAX), (0, (1 << 30) - 1)];
    let norm = [&[(1 << 28, (1 << 29) - 1), (-64, 64)][..], &WIDE].concat();
    match place {
        Place::Stem => [&[WIDE_SHIFT, SHIFT][..], &norm, &[SHIFT, SHIFT], &norm, &[SHIFT]].concat(),
        Place::Downsample { .. } => [&norm[..], &[SHIFT]].concat(),
        Place::Block { .. } => [&[SHIFT][..], &norm, &[SHIFT, (-128, 127)], &WIDE, &[SHIFT]].concat(),
        Place::Head => [&WIDE[..], &[WIDE_SHIFT, (0, 24)]].concat(),
    }
}

/// The sections of a model, to be changed and written again.
fn sections(model: &Model<'_>) -> Vec<SectionData> {
    let section = |i| match model.expected(i).unwrap().dtype {
        Dtype::I8 => SectionData::I8(model.section(i).to_vec()),
        Dtype::I16 => SectionData::I16(model.section(i).to_vec()),
        Dtype::I32 => SectionData::I32(model.section(i).to_vec()),
        Dtype::I64 => SectionData::I64(model.section(i).to_vec()),
        other => panic!("{other} in an int8 model"),
    };
    (0..model.section_count()).map(section).collect()
}

/// Models with right checksums, random weights in every section, and constants anywhere within the limits: the engine does what the
/// text says, and nothing overflows (tests run with overflow checks).
#[test]
fn hostile_weights_cannot_break_the_engine() {
    let mut random = Random::new(3);
    let (encoder, tiles) = hostile_base();
    let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
    let honest = Model::parse(&file).unwrap();
    let tiles = random_tiles(1, 2, 32, 9);
    let mut alive = 0;
    for round in 0..90 {
        let (extreme, keep) = (round % 3 == 0, round % 4);
        let mut sections = sections(&honest);
        for (i, section) in sections.iter_mut().enumerate() {
            let spec = honest.expected(i).unwrap();
            let mut bits = || match random.below(3) {
                0 if extreme => i64::MIN,
                1 if extreme => i64::MAX,
                _ => random.bits() as i64,
            };
            // The shift keeps the extremes of i64 the extremes of the narrower type.
            match section {
                SectionData::I32(constants) if spec.name == "constants" => {
                    for (value, (min, max)) in constants.iter_mut().zip(limits(spec.place)) {
                        let among = i64::from(max) - i64::from(min) + 1;
                        *value = match random.below(4) {
                            choice if choice < keep => *value,
                            0 => min,
                            1 => max,
                            _ => (i64::from(min) + (random.bits() >> 1) as i64 % among) as i32,
                        };
                    }
                }
                // Half of the rounds keep the weights, so that not everything saturates at once.
                _ if round % 2 == 1 && spec.dtype == Dtype::I8 => {}
                SectionData::I8(values) => values.iter_mut().for_each(|v| *v = (bits() >> 56) as i8),
                SectionData::I16(values) if spec.name == "GELU table" => {
                    values.iter_mut().for_each(|v| *v = ((bits() >> 48) as i16).clamp(-4095, 4095));
                }
                SectionData::I16(values) => values.iter_mut().for_each(|v| *v = (bits() >> 49) as i16 & i16::MAX),
                SectionData::I32(values) => values.iter_mut().for_each(|v| *v = (bits() >> 32) as i32),
                SectionData::I64(values) => values.iter_mut().for_each(|v| *v = bits()),
                SectionData::F32(_) | SectionData::F16(_) => unreachable!("an int8 model"),
            }
        }
        let file = AlignedBytes::copy_of(&write_model(honest.header(), &sections).unwrap());
        let model = Model::parse(&file).unwrap();
        same(&model, tiles.tile(0), &format!("round {round}"));
        let embedding = engine(&model, tiles.tile(0));
        alive += usize::from(embedding.iter().any(|&v| v != embedding[0]));
        other_types(&tiles).iter().for_each(|tiles| same(&model, tiles.tile(0), &format!("round {round}")));
    }
    assert!(alive > 45, "in only {alive} rounds the values differ at all");
}

/// Each constant at its limits is read; one beyond is refused, and named.
#[test]
fn constants_have_the_limits_of_the_text() {
    let (encoder, tiles) = hostile_base();
    let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
    let honest = Model::parse(&file).unwrap();
    let mut units = 0;
    for index in (0..honest.section_count()).filter(|&i| honest.expected(i).unwrap().name == "constants") {
        let limits = limits(honest.expected(index).unwrap().place);
        assert_eq!(honest.section::<i32>(index).len(), limits.len());
        for (at, (min, max)) in limits.into_iter().enumerate() {
            let with = |value: i32| {
                let mut sections = sections(&honest);
                let SectionData::I32(constants) = &mut sections[index] else { unreachable!("constants are i32") };
                constants[at] = value;
                write_model(honest.header(), &sections).map(drop)
            };
            with(min).unwrap();
            with(max).unwrap();
            for beyond in [min.checked_sub(1), max.checked_add(1)].into_iter().flatten() {
                let error = with(beyond).unwrap_err();
                match error.downcast_ref::<ModelError>() {
                    Some(ModelError::OutOfRange { index: i, element, .. }) => assert_eq!((*i, *element), (index, at)),
                    other => panic!("{other:?}"),
                }
            }
        }
        units += 1;
    }
    // Stem, three downsamplings, six blocks, head.
    assert_eq!(units, 1 + 3 + 6 + 1);
}

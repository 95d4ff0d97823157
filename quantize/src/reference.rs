//! The encoder in float64, written to be read: what every engine is measured against, and where calibration looks.
//!
//! Maps are `[channels, positions]` here (positions row by row), unlike the runtime's `[positions, channels]`, and no code is shared
//! with the runtime: the two can only agree if both are right.

use std::collections::BTreeMap;

use nadir::Tile;
use nadir::model::{Architecture, Place, STAGES};
use nadir_formats::{BandCard, Encoder, Tiles};
use rayon::prelude::*;

/// A place in the encoder at which an [`Observer`] may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tap {
    /// The normalised tile; channels are bands.
    Input,
    /// Initial 3x3 convolution, before its LayerNorm.
    InitialConvolution,
    /// The same after LayerNorm and GELU.
    InitialActivation,
    /// Depthwise stem convolution, or that of a patchify stem, before its LayerNorm.
    StemConvolution,
    /// After the stem's LayerNorm: the map that enters stage 0.
    StemNorm,
    /// In the downsampling before `stage` (1 to 3).
    Downsample {
        /// The stage that follows.
        stage: usize,
        /// Where in it.
        part: DownsampleTap,
    },
    /// In a block.
    Block {
        /// Its stage.
        stage: usize,
        /// Its index in the stage.
        block: usize,
        /// Where in it.
        part: BlockTap,
    },
    /// The global mean, one position.
    Pooled,
    /// After the last LayerNorm, one position.
    Embedding,
}

/// A place in a downsampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DownsampleTap {
    /// LayerNorm without its weight and bias.
    Normalised,
    /// The 2x2 convolution.
    Output,
}

/// A place in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockTap {
    /// 7x7 depthwise convolution, before LayerNorm.
    Depthwise,
    /// LayerNorm without its weight and bias.
    Normalised,
    /// First pointwise convolution, before GELU; 4C channels.
    Hidden,
    /// After GELU; 4C channels.
    Activation,
    /// GRN's N: the norm of each channel over the mean norm; one position, 4C channels.
    GrnNorm,
    /// After GRN: the input of the second pointwise convolution; 4C channels.
    GrnOutput,
    /// Second pointwise convolution, before the residual is added.
    Pointwise2,
    /// The residual map after the block.
    Output,
}

/// Looks at the maps of a forward pass.
pub trait Observer {
    /// Whether [`Observer::observe`] is to be called at `tap`; saves the transposition.
    fn wants(&self, tap: Tap) -> bool {
        let _ = tap;
        true
    }

    /// `values` is `[positions, channels]`.
    fn observe(&mut self, tap: Tap, channels: usize, values: &[f64]);
}

/// Looks nowhere.
pub struct Blind;

impl Observer for Blind {
    fn wants(&self, _: Tap) -> bool {
        false
    }

    fn observe(&mut self, _: Tap, _: usize, _: &[f64]) {}
}

/// A map `[channels, height, width]`.
#[derive(Clone, Debug)]
struct Map {
    channels: usize,
    height: usize,
    width: usize,
    data: Vec<f64>,
}

impl Map {
    fn zeros(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, height, width, data: vec![0.0; channels * height * width] }
    }

    fn positions(&self) -> usize {
        self.height * self.width
    }

    fn plane(&self, channel: usize) -> &[f64] {
        &self.data[channel * self.positions()..][..self.positions()]
    }

    /// `[positions, channels]`.
    fn rows(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.data.len()];
        for c in 0..self.channels {
            values[c..].iter_mut().step_by(self.channels).zip(self.plane(c)).for_each(|(to, &from)| *to = from);
        }
        values
    }

    fn plane_mut(&mut self, channel: usize) -> &mut [f64] {
        let positions = self.positions();
        &mut self.data[channel * positions..][..positions]
    }
}

/// An encoder in float64.
pub struct Reference {
    architecture: Architecture,
    bands: Vec<BandCard>,
    weights: BTreeMap<String, Vec<f64>>,
}

impl Reference {
    /// The weights of `encoder`, widened.
    pub fn new(encoder: &Encoder) -> Self {
        let weights =
            encoder.tensors.iter().map(|(name, t)| (name.clone(), t.data.iter().map(|&v| f64::from(v)).collect()));
        Self { architecture: encoder.card.architecture, bands: encoder.card.bands.clone(), weights: weights.collect() }
    }

    /// The encoder's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The embedding of one tile `[bands, height, width]`, with every tap shown to `observer`.
    ///
    /// # Panics
    /// If the tile has another length than the encoder takes.
    pub fn embed(&self, tile: Tile<'_>, observer: &mut dyn Observer) -> Vec<f64> {
        let arch = &self.architecture;
        let input = self.normalised(tile);
        show(observer, Tap::Input, &input);

        let stride = arch.stem_stride();
        let mut x;
        if arch.is_patchify() {
            x = self.convolution(&input, "stem.0", arch.dim(0), stride, stride, 0);
        } else {
            x = self.convolution(&input, "initial_conv.0", arch.dim(0), 3, 1, arch.initial_padding());
            show(observer, Tap::InitialConvolution, &x);
            x = self.norm(x, "initial_conv.1", |_| {});
            x.data.iter_mut().for_each(|v| *v = gelu(*v));
            show(observer, Tap::InitialActivation, &x);
            x = self.depthwise(&x, "stem.0", stride, stride, arch.stem_pad());
        }
        show(observer, Tap::StemConvolution, &x);
        x = self.norm(x, "stem.1", |_| {});
        show(observer, Tap::StemNorm, &x);

        for stage in 0..STAGES {
            if stage > 0 {
                x = self.downsample(x, stage, observer);
            }
            for block in 0..usize::from(arch.depths[stage]) {
                x = self.block(x, stage, block, observer);
            }
        }
        self.head(&x, observer).data
    }

    /// What one place, other than the stem, makes of the map that another engine gave: `[positions, channels]` in and out.
    ///
    /// # Panics
    /// If `map` does not have the length of the place's input, or the place is the stem or none of this encoder.
    pub fn place(&self, place: Place, map: &[f64]) -> Vec<f64> {
        let stage = match place {
            Place::Stem => panic!("the stem reads a tile"),
            Place::Downsample { stage } => usize::from(stage) - 1,
            Place::Block { stage, .. } => stage.into(),
            Place::Head => STAGES - 1,
        };
        let (channels, side) = (self.architecture.dim(stage), self.architecture.grid(stage));
        assert_eq!(map.len(), channels * side * side, "the map does not have the place's shape");
        let mut x = Map::zeros(channels, side, side);
        for c in 0..channels {
            x.plane_mut(c).iter_mut().zip(map[c..].iter().step_by(channels)).for_each(|(to, &from)| *to = from);
        }
        x = match place {
            Place::Downsample { stage } => self.downsample(x, stage.into(), &mut Blind),
            Place::Block { block, .. } => self.block(x, stage, block.into(), &mut Blind),
            _ => self.head(&x, &mut Blind),
        };
        x.rows()
    }

    fn downsample(&self, x: Map, stage: usize, observer: &mut dyn Observer) -> Map {
        let name = format!("downsample_layers.{}", stage - 1);
        let tap = |part| Tap::Downsample { stage, part };
        let x = self.norm(x, &format!("{name}.0"), |map| show(observer, tap(DownsampleTap::Normalised), map));
        let x = self.convolution(&x, &format!("{name}.1"), self.architecture.dim(stage), 2, 2, 0);
        show(observer, tap(DownsampleTap::Output), &x);
        x
    }

    fn head(&self, x: &Map, observer: &mut dyn Observer) -> Map {
        let mut pooled = Map::zeros(x.channels, 1, 1);
        for c in 0..x.channels {
            pooled.data[c] = x.plane(c).iter().sum::<f64>() / x.positions() as f64;
        }
        show(observer, Tap::Pooled, &pooled);
        let embedding = self.norm(pooled, "norm", |_| {});
        show(observer, Tap::Embedding, &embedding);
        embedding
    }

    /// The embeddings of all tiles, in order.
    ///
    /// # Panics
    /// As [`Reference::embed`].
    pub fn embed_all(&self, tiles: &Tiles) -> Vec<Vec<f64>> {
        (0..tiles.len()).into_par_iter().map(|i| self.embed(tiles.tile(i), &mut Blind)).collect()
    }

    fn weight(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    fn normalised(&self, tile: Tile<'_>) -> Map {
        let side = usize::from(self.architecture.tile_size);
        let data = normalised(tile, &self.bands, self.architecture.tile_size).into_iter().map(f64::from).collect();
        Map { channels: self.bands.len(), height: side, width: side, data }
    }

    /// Dense convolution with a square kernel.
    fn convolution(&self, x: &Map, name: &str, outputs: usize, kernel: usize, stride: usize, padding: usize) -> Map {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weight(&format!("{name}.bias"));
        let side = |n: usize| (n + 2 * padding - kernel) / stride + 1;
        let mut out = Map::zeros(outputs, side(x.height), side(x.width));
        for o in 0..outputs {
            out.plane_mut(o).fill(bias[o]);
            for i in 0..x.channels {
                let taps = &weight[(o * x.channels + i) * kernel * kernel..][..kernel * kernel];
                add_plane(&mut out, o, x, i, taps, kernel, stride, padding);
            }
        }
        out
    }

    /// Depthwise convolution with a square kernel.
    fn depthwise(&self, x: &Map, name: &str, kernel: usize, stride: usize, padding: usize) -> Map {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weight(&format!("{name}.bias"));
        let side = |n: usize| (n + 2 * padding - kernel) / stride + 1;
        let mut out = Map::zeros(x.channels, side(x.height), side(x.width));
        for c in 0..x.channels {
            out.plane_mut(c).fill(bias[c]);
            add_plane(&mut out, c, x, c, &weight[c * kernel * kernel..][..kernel * kernel], kernel, stride, padding);
        }
        out
    }

    /// 1x1 convolution.
    fn pointwise(&self, x: &Map, name: &str, outputs: usize) -> Map {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weight(&format!("{name}.bias"));
        let mut out = Map::zeros(outputs, x.height, x.width);
        // Some positions at a time: their inputs lie together, and their sums fit the registers.
        const BLOCK: usize = 16;
        let mut block = vec![[0.0; BLOCK]; x.channels];
        for first in (0..x.positions()).step_by(BLOCK) {
            let count = BLOCK.min(x.positions() - first);
            for (i, block) in block.iter_mut().enumerate() {
                block[..count].copy_from_slice(&x.plane(i)[first..first + count]);
            }
            for (o, weight) in weight.chunks_exact(x.channels).enumerate() {
                let mut sums = [bias[o]; BLOCK];
                for (w, x) in weight.iter().zip(&block) {
                    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += w * x);
                }
                out.plane_mut(o)[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
        out
    }

    /// LayerNorm over channels; `between` sees the map before weight and bias.
    fn norm(&self, mut x: Map, name: &str, between: impl FnOnce(&Map)) -> Map {
        let (positions, n) = (x.positions(), x.channels as f64);
        let mut mean = vec![0.0; positions];
        for c in 0..x.channels {
            mean.iter_mut().zip(x.plane(c)).for_each(|(m, v)| *m += v / n);
        }
        let mut variance = vec![0.0; positions];
        for c in 0..x.channels {
            let deviations = x.plane(c).iter().zip(&mean).map(|(v, m)| v - m);
            variance.iter_mut().zip(deviations).for_each(|(s, d)| *s += d * d / n);
        }
        let eps = f64::from(self.architecture.ln_eps);
        let scale: Vec<f64> = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        for c in 0..x.channels {
            for ((v, m), s) in x.plane_mut(c).iter_mut().zip(&mean).zip(&scale) {
                *v = (*v - m) * s;
            }
        }
        between(&x);
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weight(&format!("{name}.bias"));
        for c in 0..x.channels {
            x.plane_mut(c).iter_mut().for_each(|v| *v = *v * weight[c] + bias[c]);
        }
        x
    }

    fn block(&self, x: Map, stage: usize, block: usize, observer: &mut dyn Observer) -> Map {
        let name = format!("stages.{stage}.{block}");
        let tap = |part| Tap::Block { stage, block, part };
        let channels = x.channels;

        let mut y = self.depthwise(&x, &format!("{name}.dwconv"), 7, 1, 3);
        show(observer, tap(BlockTap::Depthwise), &y);
        y = self.norm(y, &format!("{name}.norm"), |map| show(observer, tap(BlockTap::Normalised), map));
        let mut h = self.pointwise(&y, &format!("{name}.pwconv1"), 4 * channels);
        show(observer, tap(BlockTap::Hidden), &h);
        h.data.iter_mut().for_each(|v| *v = gelu(*v));
        show(observer, tap(BlockTap::Activation), &h);

        let mut norms = Map::zeros(h.channels, 1, 1);
        for c in 0..h.channels {
            norms.data[c] = h.plane(c).iter().map(|v| v * v).sum::<f64>().sqrt();
        }
        let mean = norms.data.iter().sum::<f64>() / h.channels as f64;
        let eps = f64::from(self.architecture.grn_eps);
        norms.data.iter_mut().for_each(|v| *v /= mean + eps);
        show(observer, tap(BlockTap::GrnNorm), &norms);
        let gamma = self.weight(&format!("{name}.grn.gamma"));
        let beta = self.weight(&format!("{name}.grn.beta"));
        for c in 0..h.channels {
            let n = norms.data[c];
            h.plane_mut(c).iter_mut().for_each(|v| *v = gamma[c] * (*v * n) + beta[c] + *v);
        }
        show(observer, tap(BlockTap::GrnOutput), &h);

        let mut out = self.pointwise(&h, &format!("{name}.pwconv2"), channels);
        show(observer, tap(BlockTap::Pointwise2), &out);
        out.data.iter_mut().zip(&x.data).for_each(|(out, x)| *out += x);
        show(observer, tap(BlockTap::Output), &out);
        out
    }
}

/// What enters an encoder: of each value of a tile `[bands, side, side]` `(value - mean) / std`, which is defined in f32; 0 where there is no
/// data.
///
/// # Panics
/// If the tile has another length.
pub fn normalised(tile: Tile<'_>, bands: &[BandCard], side: u16) -> Vec<f32> {
    let positions = usize::from(side).pow(2);
    assert_eq!(bands.len() * positions, tile.len(), "the tile does not have the encoder's shape");
    let value = |(i, card): (usize, &BandCard)| {
        let stored = tile.value(i).unwrap_or(f32::NAN);
        let missing = !stored.is_finite() || card.no_data == Some(stored);
        if missing { 0.0 } else { (stored - card.mean) / card.std }
    };
    bands
        .iter()
        .enumerate()
        .flat_map(|(b, card)| (0..positions).map(move |i| value((b * positions + i, card))))
        .collect()
}

/// Adds the convolution of one input plane with one kernel to one output plane.
fn add_plane(out: &mut Map, o: usize, x: &Map, i: usize, taps: &[f64], kernel: usize, stride: usize, padding: usize) {
    let (height, width) = (out.height, out.width);
    let input = x.plane(i);
    let plane = out.plane_mut(o);
    for ky in 0..kernel {
        for kx in 0..kernel {
            let w = taps[ky * kernel + kx];
            // Output columns whose input column x * stride + kx - padding exists.
            let first = padding.saturating_sub(kx).div_ceil(stride);
            let last = (x.width + padding).saturating_sub(kx).div_ceil(stride).min(width);
            for y in 0..height {
                let row = y * stride + ky;
                if row < padding || row - padding >= x.height || first >= last {
                    continue;
                }
                let input = &input[(row - padding) * x.width..][..x.width];
                let columns = input[first * stride + kx - padding..].iter().step_by(stride);
                plane[y * width + first..y * width + last].iter_mut().zip(columns).for_each(|(out, v)| *out += w * v);
            }
        }
    }
}

/// GELU by the error function, exact to float64's rounding.
fn gelu(v: f64) -> f64 {
    0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2))
}

fn show(observer: &mut dyn Observer, tap: Tap, map: &Map) {
    if !observer.wants(tap) {
        return;
    }
    observer.observe(tap, map.channels, &map.rows());
}

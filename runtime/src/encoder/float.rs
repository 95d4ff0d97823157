//! The f32 and f16 engine.
//!
//! An f16 model differs only in how its convolutions' weights are stored: one panel at a time is widened into the arena, and the same
//! f32 kernels run. Maps are `[height, width, channels]`; [`crate::plan`] says what lies where in the arena.

use super::EmbedError;
use crate::Tile;
use crate::kernels::float::{FloatKernels, Map, SCALAR, sum, widen_f16};
use crate::model::float_layout::{PANEL, block_start, head_start, stage_start};
use crate::model::{Architecture, Band, Model, Precision, STAGES};
use crate::plan::{FloatRegions, float_arena_bytes, round, strip_rows};

/// Bytes of the arena.
pub(crate) fn arena_bytes(model: &Model<'_>) -> usize {
    float_arena_bytes(model.architecture(), model.bands().len(), half(model))
}

/// Embeds one tile; lengths and alignment were checked by [`super::Encoder::embed`], and `arena` has exactly [`arena_bytes`] bytes.
pub(crate) fn embed(model: &Model<'_>, tile: &Tile<'_>, arena: &mut [u8], out: &mut [f32]) -> Result<(), EmbedError> {
    let address = arena.as_ptr() as usize;
    let Ok(arena) = bytemuck::try_cast_slice_mut::<u8, f32>(arena) else {
        return Err(EmbedError::ArenaMisaligned { address });
    };
    let engine = Engine { model, arch: model.architecture(), half: half(model), kernels: &SCALAR };
    engine.stem(tile, arena);
    for stage in 0..STAGES {
        if stage > 0 {
            engine.downsample(stage, arena);
        }
        for block in 0..usize::from(engine.arch.depths[stage]) {
            engine.block(stage, block, arena);
        }
    }
    engine.head(arena, out);
    Ok(())
}

fn half(model: &Model<'_>) -> bool {
    model.precision() == Precision::F16
}

/// The regions of one step, cut out of the arena.
struct Arena<'a> {
    map: &'a mut [f32],
    hidden: &'a mut [f32],
    strip: &'a mut [f32],
    aside: &'a mut [f32],
    panel: &'a mut [f32],
}

impl<'a> Arena<'a> {
    fn split(arena: &'a mut [f32], regions: &FloatRegions) -> Self {
        fn cut(arena: &mut [f32], len: usize) -> (&mut [f32], &mut [f32]) {
            let (region, rest) = arena.split_at_mut(round(len));
            (&mut region[..len], rest)
        }
        let (map, rest) = cut(arena, regions.map);
        let (hidden, rest) = cut(rest, regions.hidden);
        let (strip, rest) = cut(rest, regions.strip);
        let (aside, rest) = cut(rest, regions.aside);
        let (panel, _) = cut(rest, regions.panel);
        Self { map, hidden, strip, aside, panel }
    }
}

/// Weights in panels of `[inputs, 8]`.
#[derive(Clone, Copy)]
enum Weights<'m> {
    F32(&'m [f32]),
    F16(&'m [u16]),
}

impl<'m> Weights<'m> {
    /// Panel `index`, widened into `space` if need be.
    fn panel<'s>(&self, index: usize, inputs: usize, space: &'s mut [f32]) -> &'s [f32]
    where
        'm: 's,
    {
        let range = index * inputs * PANEL..(index + 1) * inputs * PANEL;
        match self {
            Weights::F32(weights) => &weights[range],
            Weights::F16(bits) => {
                let space = &mut space[..inputs * PANEL];
                widen_f16(&bits[range], space);
                space
            }
        }
    }
}

struct Engine<'m> {
    model: &'m Model<'m>,
    arch: &'m Architecture,
    half: bool,
    kernels: &'static FloatKernels,
}

impl<'m> Engine<'m> {
    fn vector(&self, index: usize) -> &'m [f32] {
        self.model.section(index)
    }

    fn weights(&self, index: usize) -> Weights<'m> {
        if self.half { Weights::F16(self.model.section(index)) } else { Weights::F32(self.model.section(index)) }
    }

    /// Dense layer with the weight in section `index` and the bias after it: `input` `[pixels, inputs]` to `output` `[pixels, outputs]`.
    fn dense(&self, index: usize, input: &[f32], inputs: usize, output: &mut [f32], panel: &mut [f32]) {
        let (weights, bias) = (self.weights(index), self.vector(index + 1));
        for (i, bias_of_panel) in bias.chunks(PANEL).enumerate() {
            let panel = weights.panel(i, inputs, panel);
            (self.kernels.dense)(input, inputs, panel, bias_of_panel, &mut output[i * PANEL..], bias.len());
        }
    }

    /// LayerNorm with the weight in section `index` and the bias after it.
    fn norm(&self, index: usize, values: &mut [f32]) {
        (self.kernels.layer_norm)(values, self.vector(index), self.vector(index + 1), self.arch.ln_eps);
    }

    /// Tile to the map of stage 0, one row at a time: `k` rows of the initial convolution, normalised and activated, then one row of
    /// the depthwise stem with kernel and stride `k`.
    fn stem(&self, tile: &Tile<'_>, arena: &mut [f32]) {
        let bands = self.model.bands();
        let regions = FloatRegions::stem(self.arch, bands.len(), self.half);
        let Arena { map, strip, aside, panel, .. } = Arena::split(arena, &regions);
        let (grid, d, k, width) =
            (self.arch.grids()[0], self.arch.dim(0), self.arch.stem_stride(), self.arch.initial_grid());
        let padding = self.arch.stem_pad();
        let (rows, patches) = aside.split_at_mut(aside.len() - 9 * width * bands.len());
        for y in 0..grid {
            for (ky, row) in strip.chunks_exact_mut(width * d).enumerate() {
                // Rows in the stem's padding are skipped below.
                if let Some(at) = (y * k + ky).checked_sub(padding).filter(|&at| at < width) {
                    self.gather(tile, bands, at, rows, patches);
                    self.dense(0, patches, 9 * bands.len(), row, panel);
                    self.norm(2, row);
                    (self.kernels.gelu)(row);
                }
            }
            self.stem_row(y, strip, panel, &mut map[y * grid * d..(y + 1) * grid * d]);
        }
        self.norm(6, map);
    }

    /// The 3x3 neighbourhoods of row `y` of the initial convolution, `[width, (row, column, band)]`, normalised.
    fn gather(&self, tile: &Tile<'_>, bands: &[Band], y: usize, rows: &mut [f32], patches: &mut [f32]) {
        let (side, padding) = (usize::from(self.arch.tile_size), self.arch.initial_padding());
        let n = bands.len();
        let padded = side + 2 * padding;
        rows.fill(0.0);
        for (ky, row) in rows.chunks_exact_mut(padded * n).enumerate() {
            let Some(at) = (y + ky).checked_sub(padding).filter(|&at| at < side) else { continue };
            for (b, band) in bands.iter().enumerate() {
                let start = (b * side + at) * side;
                for x in 0..side {
                    let stored = tile.value(start + x).unwrap_or(f32::NAN);
                    let missing = !stored.is_finite() || band.no_data == Some(stored);
                    row[(x + padding) * n + b] = if missing { 0.0 } else { (stored - band.mean) / band.std };
                }
            }
        }
        for (x, patch) in patches.chunks_exact_mut(9 * n).enumerate() {
            for (part, row) in patch.chunks_exact_mut(3 * n).zip(rows.chunks_exact(padded * n)) {
                part.copy_from_slice(&row[x * n..(x + 3) * n]);
            }
        }
    }

    /// One row of the depthwise stem from the `k` rows of the initial convolution that it covers.
    fn stem_row(&self, y: usize, strip: &[f32], panel: &mut [f32], output: &mut [f32]) {
        let (d, k, width) = (self.arch.dim(0), self.arch.stem_stride(), self.arch.initial_grid());
        let padding = self.arch.stem_pad();
        let (weights, bias) = (self.weights(4), self.vector(5));
        for (i, bias) in bias.chunks(PANEL).enumerate() {
            let taps = weights.panel(i, k * k, panel).as_chunks::<PANEL>().0;
            for (x, pixel) in output.chunks_exact_mut(d).enumerate() {
                let mut acc = [0.0; PANEL];
                for (tap, (ky, kx)) in taps.iter().zip((0..k * k).map(|t| (t / k, t % k))) {
                    let row_exists = (y * k + ky).checked_sub(padding).is_some_and(|at| at < width);
                    let Some(column) = (x * k + kx).checked_sub(padding).filter(|&at| at < width && row_exists) else {
                        continue;
                    };
                    let at = (ky * width + column) * d + i * PANEL;
                    for ((acc, &w), &v) in acc.iter_mut().zip(tap).zip(&strip[at..at + bias.len()]) {
                        *acc += v * w;
                    }
                }
                for ((out, &acc), &bias) in pixel[i * PANEL..].iter_mut().zip(&acc).zip(bias) {
                    *out = acc + bias;
                }
            }
        }
    }

    /// LayerNorm, then a 2x2 convolution of stride 2; an odd last row or column is dropped.
    fn downsample(&self, stage: usize, arena: &mut [f32]) {
        let Arena { map, hidden, strip, panel, .. } =
            Arena::split(arena, &FloatRegions::downsample(self.arch, stage, self.half));
        let first = stage_start(self.arch, stage);
        let (side, grid) = (self.arch.grids()[stage - 1], self.arch.grids()[stage]);
        let (before, d) = (self.arch.dim(stage - 1), self.arch.dim(stage));
        let rows = strip_rows(grid);
        for (i, output) in hidden.chunks_mut(rows * grid * d).enumerate() {
            let pixels = output.len() / d;
            let patches = &mut strip[..pixels * 4 * before];
            for (p, patch) in patches.chunks_exact_mut(4 * before).enumerate() {
                let (y, x) = (2 * (i * rows + p / grid), 2 * (p % grid));
                for (ky, pair) in patch.chunks_exact_mut(2 * before).enumerate() {
                    let at = ((y + ky) * side + x) * before;
                    pair.copy_from_slice(&map[at..at + 2 * before]);
                }
            }
            self.norm(first, patches);
            self.dense(first + 2, patches, 4 * before, output, panel);
        }
        // The result may be larger than the map that it replaces.
        let len = hidden.len();
        let start = round(map.len());
        arena.copy_within(start..start + len, 0);
    }

    /// `x + pointwise2(GRN(GELU(pointwise1(LN(depthwise(x))))))`, the map in place.
    fn block(&self, stage: usize, block: usize, arena: &mut [f32]) {
        let Arena { map, hidden, strip, aside, panel } =
            Arena::split(arena, &FloatRegions::block(self.arch, stage, self.half));
        let first = block_start(self.arch, stage, block);
        let (grid, d) = (self.arch.grids()[stage], self.arch.dim(stage));
        let rows = strip_rows(grid);
        let (squares, partial) = aside.split_at_mut(4 * d);
        squares.fill(0.0);

        // The map stays as it is until the whole hidden map is known.
        for (i, hidden) in hidden.chunks_mut(rows * grid * 4 * d).enumerate() {
            let strip = &mut strip[..hidden.len() / 4];
            self.depthwise(first, Map { values: map, side: grid, channels: d }, i * rows, strip, panel);
            self.norm(first + 2, strip);
            self.dense(first + 4, strip, d, hidden, panel);
            (self.kernels.gelu)(hidden);
            partial.fill(0.0);
            (self.kernels.add_squares)(hidden, partial);
            squares.iter_mut().zip(&*partial).for_each(|(sum, &v)| *sum += v);
        }

        let multiplier = squares;
        multiplier.iter_mut().for_each(|v| *v = libm::sqrtf(*v));
        let mean = sum(multiplier, |v| v) / (4 * d) as f32;
        for (m, &gamma) in multiplier.iter_mut().zip(self.vector(first + 6)) {
            *m = 1.0 + gamma * (*m / (mean + self.arch.grn_eps));
        }
        for (hidden, map) in hidden.chunks_mut(rows * grid * 4 * d).zip(map.chunks_mut(rows * grid * d)) {
            (self.kernels.scale)(hidden, multiplier, self.vector(first + 7));
            let strip = &mut strip[..map.len()];
            self.dense(first + 8, hidden, 4 * d, strip, panel);
            map.iter_mut().zip(&*strip).for_each(|(x, &v)| *x += v);
        }
    }

    /// Depthwise convolution of the rows of `strip`, the first of which is row `y` of the map.
    fn depthwise(&self, index: usize, map: Map<'_>, y: usize, strip: &mut [f32], panel: &mut [f32]) {
        let (weights, bias) = (self.weights(index), self.vector(index + 1));
        for (i, bias) in bias.chunks(PANEL).enumerate() {
            let panel = weights.panel(i, 49, panel);
            for (row, output) in strip.chunks_exact_mut(map.side * map.channels).enumerate() {
                (self.kernels.depthwise)(map, y + row, i * PANEL, panel, bias, output);
            }
        }
    }

    /// Global mean, then LayerNorm.
    fn head(&self, arena: &[f32], out: &mut [f32]) {
        let grid = self.arch.grids()[STAGES - 1];
        out.fill(0.0);
        for pixel in arena[..grid * grid * out.len()].chunks_exact(out.len()) {
            out.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += v);
        }
        out.iter_mut().for_each(|v| *v /= (grid * grid) as f32);
        self.norm(head_start(self.arch), out);
    }
}

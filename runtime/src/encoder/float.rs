//! The f32 and f16 engine.
//!
//! Maps are `[panels, height, width, 16]` in the arena, strips `[panels, pixels, 16]`: each kernel finds a panel's channels
//! side by side and at a multiple of their size. [`crate::plan`] says what lies where. An f16 model differs only in how its
//! convolutions' weights are stored: the weights of one job of a kernel are widened into the arena, and the same f32 kernels
//! run.
//!
//! A block is two passes, because Global Response Normalization needs the norm of each hidden channel over the whole map:
//!
//! 1. strip by strip depthwise convolution, LayerNorm, first pointwise convolution, GELU, sums of squares;
//! 2. strip by strip GRN on the hidden values while they are in cache, second pointwise convolution, added to the map.

use super::EmbedError;
use super::cursor::Cursor;
use crate::Tile;
use crate::kernels::float::{Dense, Depthwise, FloatKernels, GROUP, LayerNorm, RUNS, Run, Stem, group, lanes};
use crate::model::float_layout::{PANEL, block_start, head_start, stage_start};
use crate::model::{Architecture, MAX_PATCHIFY_TAPS, Model, Place, Precision, STAGES};
use crate::plan::{FloatRegions, float_arena_bytes, padded, round, strip_rows};

/// Bytes of the arena.
pub(crate) fn arena_bytes(model: &Model<'_>) -> usize {
    float_arena_bytes(model.architecture(), model.bands().len(), half(model))
}

/// One strip of one pass. Returns where to go on, or `None` once the embedding is in `out`.
///
/// `arena` holds what the steps before left in it.
pub(crate) fn step(
    model: &Model<'_>,
    kernels: &'static FloatKernels,
    tile: &Tile<'_>,
    arena: &mut [u8],
    cursor: Cursor,
    out: &mut [f32],
) -> Result<Option<Cursor>, EmbedError> {
    let address = arena.as_ptr() as usize;
    let Ok(arena) = bytemuck::try_cast_slice_mut::<u8, f32>(arena) else {
        return Err(EmbedError::ArenaMisaligned { address });
    };
    let engine = Engine { model, arch: model.architecture(), half: half(model), kernels };
    // Where this part of the encoder goes on, or `None` if it is done.
    let next = match cursor.place {
        Place::Stem => engine.stem(tile, arena, cursor),
        Place::Downsample { stage } if cursor.pass == 0 => engine.downsample(stage.into(), arena, cursor),
        Place::Downsample { stage } => engine.replace(stage.into(), arena, cursor),
        Place::Block { stage, block } if cursor.pass == 0 => engine.expand(stage.into(), block.into(), arena, cursor),
        Place::Block { stage, block } => engine.project(stage.into(), block.into(), arena, cursor),
        Place::Head => {
            engine.head(arena, out);
            None
        }
    };
    Ok(next.or_else(|| cursor.next_place(engine.arch)))
}

fn half(model: &Model<'_>) -> bool {
    model.precision() == Precision::F16
}

/// The regions of one part of the encoder, cut out of the arena.
struct Arena<'a> {
    map: &'a mut [f32],
    hidden: &'a mut [f32],
    strip: &'a mut [f32],
    aside: &'a mut [f32],
    wide: &'a mut [f32],
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
        let (wide, _) = cut(rest, regions.wide);
        Self { map, hidden, strip, aside, wide }
    }
}

/// Weights in panels of `[inputs, 16]`.
#[derive(Clone, Copy)]
enum Weights<'m> {
    F32(&'m [f32]),
    F16(&'m [u16]),
}

/// Inputs of a dense layer: pixels panel by panel, once for each tap of a convolution.
struct Input<'a> {
    values: &'a [f32],
    /// Where the first pixel begins, for each tap.
    taps: &'a [usize],
    /// Values from one panel to the next.
    stride: usize,
    /// Channels of a tap.
    channels: usize,
    pixels: usize,
}

impl Input<'_> {
    /// Inputs `index` of the layer, in runs of up to [`PANEL`]; `None` past the last.
    fn run(&self, index: usize) -> Option<Run> {
        let panels = self.channels.div_ceil(PANEL);
        let panel = index % panels;
        let start = self.taps.get(index / panels)? + panel * self.stride;
        Some(Run { start, len: PANEL.min(self.channels - panel * PANEL) })
    }
}

/// Where a dense layer writes.
struct Output<'a> {
    values: &'a mut [f32],
    /// Values from one panel to the next.
    stride: usize,
    /// Whether to add to what is there.
    add: bool,
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

    /// The weights of panel `panel` of a depthwise convolution with `taps` taps; in `wide` if they had to be widened.
    fn taps<'s>(&self, weights: Weights<'m>, panel: usize, taps: usize, wide: &'s mut [f32]) -> &'s [f32]
    where
        'm: 's,
    {
        let range = panel * taps * PANEL..(panel + 1) * taps * PANEL;
        match weights {
            Weights::F32(weights) => &weights[range],
            Weights::F16(bits) => {
                let wide = &mut wide[..taps * PANEL];
                (self.kernels.widen)(&bits[range], wide);
                wide
            }
        }
    }

    /// Dense layer with the weight in section `index` and the bias after it. `after` is called with each panel of outputs
    /// once it is complete.
    fn dense(
        &self,
        index: usize,
        input: &Input<'_>,
        output: Output<'_>,
        wide: &mut [f32],
        mut after: impl FnMut(usize, &mut [f32]),
    ) {
        let (weights, bias) = (self.weights(index), self.vector(index + 1));
        let (panels, inputs) = (bias.len().div_ceil(PANEL), input.taps.len() * input.channels);
        let (mut first_run, mut done) = (0, 0);
        while done < inputs {
            let mut runs = [Run::default(); RUNS];
            let (mut count, mut len) = (0, 0);
            while let Some(run) = input.run(first_run + count).filter(|_| count < RUNS) {
                runs[count] = run;
                len += run.len;
                count += 1;
            }
            let mut panel = 0;
            while panel < panels {
                let group = group(panels - panel);
                let stride = inputs * PANEL;
                let start = panel * stride + done * PANEL;
                // The same inputs of the next panels, or else the next inputs of the first: a hint, so that they need not be
                // there.
                let after_this = if panel + group < panels { start + group * stride } else { (done + len) * PANEL };
                let (weights, weight_stride, next) = match weights {
                    Weights::F32(weights) => (&weights[start..], stride, weights.get(after_this..).unwrap_or(&[])),
                    Weights::F16(bits) => {
                        for (i, wide) in wide.chunks_exact_mut(len * PANEL).take(group).enumerate() {
                            (self.kernels.widen)(&bits[start + i * stride..][..len * PANEL], wide);
                        }
                        (&*wide, len * PANEL, &[][..])
                    }
                };
                let biases: [_; GROUP] = core::array::from_fn(|i| lanes(bias, panel + i));
                let job = Dense {
                    input: input.values,
                    runs: &runs[..count],
                    pixels: input.pixels,
                    weights,
                    weight_stride,
                    next,
                    panels: group,
                    bias: if done == 0 { &biases[..group] } else { &[] },
                    output_stride: output.stride,
                    add: output.add || done > 0,
                };
                (self.kernels.dense)(&job, &mut output.values[panel * output.stride..]);
                if done + len == inputs {
                    for panel in panel..panel + group {
                        after(panel, &mut output.values[panel * output.stride..][..input.pixels * PANEL]);
                    }
                }
                panel += group;
            }
            first_run += count;
            done += len;
        }
    }

    /// LayerNorm with the weight in section `index` and the bias after it.
    fn norm(&self, index: usize, values: &mut [f32], pixels: usize, stride: usize) {
        let norm = LayerNorm { weight: self.vector(index), bias: self.vector(index + 1), eps: self.arch.ln_eps };
        (self.kernels.layer_norm)(&norm, values, pixels, stride);
    }

    /// One row of the map of stage 0: the rows of the initial convolution under the stem's kernel, normalised and activated,
    /// then the depthwise stem with kernel and stride `k`, normalised.
    ///
    /// Rows of the tile stand in a ring, row `y` (counted with the padding) in slot `y % (k + 2)`, so that each is read once.
    fn stem(&self, tile: &Tile<'_>, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        if self.arch.is_patchify() {
            return self.patchify(tile, arena, cursor);
        }
        let (arch, bands, y) = (self.arch, self.model.bands().len(), cursor.row);
        let Arena { map, strip, aside: ring, wide, .. } =
            Arena::split(arena, &FloatRegions::stem(arch, bands, self.half));
        let (grid, k, width, padding) = (arch.grids()[0], arch.stem_stride(), arch.initial_grid(), arch.stem_pad());
        let side = usize::from(arch.tile_size) + 2 * arch.initial_padding();
        let slot = |row: usize| row % (k + 2) * side * padded(bands);
        // The rows of the initial convolution that exist.
        let rows = (y * k).saturating_sub(padding)..(y * k + k - padding).min(width);
        for row in if y == 0 { 0 } else { rows.start + 2 }..rows.end + 2 {
            self.normalise(tile, row, &mut ring[slot(row)..][..side * padded(bands)]);
        }
        for row in rows {
            let taps: [usize; 9] = core::array::from_fn(|tap| slot(row + tap / 3) + tap % 3 * PANEL);
            let input = Input { values: ring, taps: &taps, stride: side * PANEL, channels: bands, pixels: width };
            // Of each panel, the row under the kernel's row.
            let strip = &mut strip[(row + padding - y * k) * width * PANEL..];
            let stride = k * width * PANEL;
            self.dense(0, &input, Output { values: strip, stride, add: false }, wide, |_, _| {});
            self.norm(2, strip, width, stride);
            for panel in strip.chunks_mut(stride) {
                (self.kernels.gelu)(&mut panel[..width * PANEL], width, &mut [0.0; PANEL]);
            }
        }
        let (weights, bias) = (self.weights(4), self.vector(5));
        let stride = grid * grid * PANEL;
        for (panel, rows) in strip.chunks_exact(k * width * PANEL).enumerate() {
            let bias = &lanes(bias, panel);
            let weights = self.taps(weights, panel, k * k, wide);
            let job = Stem { input: rows, width, first: y * k, kernel: k, padding, weights, bias };
            (self.kernels.stem)(&job, &mut map[panel * stride + y * grid * PANEL..][..grid * PANEL]);
        }
        self.norm(6, &mut map[y * grid * PANEL..], grid, stride);
        (y + 1 < grid).then_some(cursor.at_row(y + 1))
    }

    /// One row of the map of stage 0 behind a patchify stem: a convolution of whole patches, normalised.
    fn patchify(&self, tile: &Tile<'_>, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        let (arch, bands, y) = (self.arch, self.model.bands().len(), cursor.row);
        let Arena { map, strip: patches, aside: line, wide, .. } =
            Arena::split(arena, &FloatRegions::stem(arch, bands, self.half));
        let (grid, k, side) = (arch.grids()[0], arch.stem_stride(), usize::from(arch.tile_size));
        // [tap, panel of bands, pixel, 16]
        let tap_len = padded(bands) * grid;
        for row in 0..k {
            self.normalise(tile, y * k + row, line);
            for (panel, line) in line.chunks_exact(side * PANEL).enumerate() {
                for (x, value) in line.as_chunks::<PANEL>().0.iter().take(grid * k).enumerate() {
                    let at = (row * k + x % k) * tap_len + (panel * grid + x / k) * PANEL;
                    patches[at..at + PANEL].copy_from_slice(value);
                }
            }
        }
        let mut taps = [0; MAX_PATCHIFY_TAPS];
        taps.iter_mut().enumerate().for_each(|(tap, start)| *start = tap * tap_len);
        let input =
            Input { values: patches, taps: &taps[..k * k], stride: grid * PANEL, channels: bands, pixels: grid };
        let stride = grid * grid * PANEL;
        let row = &mut map[y * grid * PANEL..];
        self.dense(0, &input, Output { values: &mut *row, stride, add: false }, wide, |_, _| {});
        self.norm(2, row, grid, stride);
        (y + 1 < grid).then_some(cursor.at_row(y + 1))
    }

    /// Row `y` of the tile (counted with the padding), normalised, into `[panels of bands, padded side, 16]`.
    fn normalise(&self, tile: &Tile<'_>, y: usize, row: &mut [f32]) {
        /// Pixels at a time.
        const RUN: usize = 16;
        let (side, padding) = (usize::from(self.arch.tile_size), self.arch.initial_padding());
        row.fill(0.0);
        let Some(y) = y.checked_sub(padding).filter(|&y| y < side) else { return };
        let panel = (side + 2 * padding) * PANEL;
        for (b, band) in self.model.bands().iter().enumerate() {
            let start = (b * side + y) * side;
            for x in (0..side).step_by(RUN) {
                let mut stored = [f32::NAN; RUN];
                let n = RUN.min(side - x);
                tile.read(start + x, &mut stored[..n]);
                let values = stored.map(|stored| {
                    let missing = !stored.is_finite() || band.no_data == Some(stored);
                    if missing { 0.0 } else { (stored - band.mean) / band.std }
                });
                let places = row[b / PANEL * panel + (x + padding) * PANEL..].chunks_exact_mut(PANEL);
                for (place, value) in places.zip(&values[..n]) {
                    place[b % PANEL] = *value;
                }
            }
        }
    }

    /// A strip of a downsampling: LayerNorm, then a 2x2 convolution of stride 2; an odd last row or column is dropped.
    fn downsample(&self, stage: usize, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        let Arena { map, hidden, strip, wide, .. } =
            Arena::split(arena, &FloatRegions::downsample(self.arch, stage, self.half));
        let first = stage_start(self.arch, stage);
        let (side, grid) = (self.arch.grids()[stage - 1], self.arch.grids()[stage]);
        let (channels, panels) = (self.arch.dim(stage - 1), padded(self.arch.dim(stage - 1)) / PANEL);
        let rows = strip_rows(grid).min(grid - cursor.row);
        let pixels = rows * grid;
        // [tap, panel, pixel, 16]
        let patches = &mut strip[..4 * panels * pixels * PANEL];
        for (i, patch) in patches.chunks_exact_mut(pixels * PANEL).enumerate() {
            let (tap, panel) = (i / panels, i % panels);
            for (row, patch) in patch.chunks_exact_mut(grid * PANEL).enumerate() {
                let at = (2 * (cursor.row + row) + tap / 2) * side + tap % 2;
                let from = map[(panel * side * side + at) * PANEL..].as_chunks::<PANEL>().0;
                for (to, from) in patch.as_chunks_mut::<PANEL>().0.iter_mut().zip(from.iter().step_by(2)) {
                    *to = *from;
                }
            }
        }
        let stride = pixels * PANEL;
        let taps = [0, 1, 2, 3].map(|tap| tap * panels * stride);
        for tap in taps {
            self.norm(first, &mut patches[tap..], pixels, stride);
        }
        let input = Input { values: patches, taps: &taps, stride, channels, pixels };
        let output =
            Output { values: &mut hidden[cursor.row * grid * PANEL..], stride: grid * grid * PANEL, add: false };
        self.dense(first + 2, &input, output, wide, |_, _| {});
        let next = cursor.row + rows;
        Some(if next < grid { cursor.at_row(next) } else { cursor.next_pass() })
    }

    /// A panel of a downsampling's result, over the map that it replaces.
    fn replace(&self, stage: usize, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        let regions = FloatRegions::downsample(self.arch, stage, self.half);
        let panel = self.arch.grids()[stage] * self.arch.grids()[stage] * PANEL;
        // The result may be larger than the map.
        let start = cursor.row * panel;
        let from = round(regions.map) + start;
        arena.copy_within(from..from + panel, start);
        (start + panel < regions.hidden).then_some(cursor.at_row(cursor.row + 1))
    }

    /// A strip of a block's first pass: `GELU(pointwise1(LN(depthwise(x))))`, into the hidden map; the map stays as it is
    /// until the whole hidden map is known.
    fn expand(&self, stage: usize, block: usize, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        let Arena { map, hidden, strip, aside: squares, wide } =
            Arena::split(arena, &FloatRegions::block(self.arch, stage, self.half));
        let first = block_start(self.arch, stage, block);
        let (grid, channels) = (self.arch.grids()[stage], self.arch.dim(stage));
        let rows = strip_rows(grid).min(grid - cursor.row);
        let pixels = rows * grid;
        let stride = pixels * PANEL;
        let strip = &mut strip[..padded(channels) * pixels];
        if cursor.row == 0 {
            squares.fill(0.0);
        }
        let (weights, bias) = (self.weights(first), self.vector(first + 1));
        for (panel, output) in strip.chunks_exact_mut(stride).enumerate() {
            let bias = &lanes(bias, panel);
            let weights = self.taps(weights, panel, 49, wide);
            let input = &map[panel * grid * grid * PANEL..];
            let job = Depthwise { input, side: grid, first: cursor.row, rows, weights, bias };
            (self.kernels.depthwise)(&job, output);
        }
        self.norm(first + 2, strip, pixels, stride);
        let width = padded(4 * channels);
        let hidden = &mut hidden[cursor.row * grid * width..][..pixels * width];
        let input = Input { values: strip, taps: &[0], stride, channels, pixels };
        let output = Output { values: hidden, stride, add: false };
        let squares = squares.as_chunks_mut::<PANEL>().0;
        self.dense(first + 4, &input, output, wide, |panel, values| {
            (self.kernels.gelu)(values, grid, &mut squares[panel]);
        });
        let next = cursor.row + rows;
        Some(if next < grid { cursor.at_row(next) } else { cursor.next_pass().at_row(cursor.row) })
    }

    /// A strip of a block's second pass: `x += pointwise2(GRN(hidden))`. From the last strip to the first, because what the
    /// first pass wrote last is still in cache.
    fn project(&self, stage: usize, block: usize, arena: &mut [f32], cursor: Cursor) -> Option<Cursor> {
        let Arena { map, hidden, aside: multiplier, wide, .. } =
            Arena::split(arena, &FloatRegions::block(self.arch, stage, self.half));
        let first = block_start(self.arch, stage, block);
        let (grid, channels) = (self.arch.grids()[stage], 4 * self.arch.dim(stage));
        let rows = strip_rows(grid);
        let rows_here = rows.min(grid - cursor.row);
        if cursor.row + rows_here == grid {
            (self.kernels.grn)(multiplier, self.vector(first + 6), self.arch.grn_eps);
        }
        let pixels = rows_here * grid;
        let width = padded(channels);
        let hidden = &mut hidden[cursor.row * grid * width..][..pixels * width];
        (self.kernels.scale)(hidden, multiplier, self.vector(first + 7));
        let input = Input { values: hidden, taps: &[0], stride: pixels * PANEL, channels, pixels };
        let values = &mut map[cursor.row * grid * PANEL..];
        self.dense(first + 8, &input, Output { values, stride: grid * grid * PANEL, add: true }, wide, |_, _| {});
        Some(cursor.at_row(cursor.row.checked_sub(rows)?))
    }

    /// Global mean, then LayerNorm.
    fn head(&self, arena: &mut [f32], out: &mut [f32]) {
        let pixels = self.arch.grids()[STAGES - 1] * self.arch.grids()[STAGES - 1];
        let map = &mut arena[..padded(out.len()) * pixels];
        for panel in map.chunks_exact_mut(pixels * PANEL) {
            let mut sums = [0.0; PANEL];
            for pixel in panel.as_chunks::<PANEL>().0 {
                sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += v);
            }
            // In place of the first pixel.
            panel[..PANEL].copy_from_slice(&sums.map(|sum| sum / pixels as f32));
        }
        self.norm(head_start(self.arch), map, 1, pixels * PANEL);
        for (out, panel) in out.chunks_mut(PANEL).zip(map.chunks_exact(pixels * PANEL)) {
            out.copy_from_slice(&panel[..out.len()]);
        }
    }
}

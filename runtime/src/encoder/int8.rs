//! The integer encoder: int8 weights and matrix inputs, an int16 residual stream, 32 and 64-bit sums; no floating point but the
//! input of f32 tiles and the exact scaling of the result.
//!
//! `docs/integer-arithmetic.md` states every operation to the bit; this file and the scalar kernels are its reference. A step is one
//! row of the stem, one strip of a downsampling, one strip of one pass over a block, or the head: [`crate::plan::int8`] says how long strips
//! are, and what of the arena each step uses.

use super::EmbedError;
use super::arena::{Arena, part, part_mut};
use super::cursor::Cursor;
use crate::Tile;
use crate::kernels::fixed::*;
use crate::kernels::int8::{Area, Dense, FloatBand, Gelu, Int8Kernels, LOW_BITS, RING_ROWS, Rows, Table};
use crate::model::int8_layout::{
    Block, Downsample, Head, INPUT_FRACTION_BITS, Input, NORM_BITS, POOL_BITS, Patchify, RATIO_BITS, Stem, stored,
};
use crate::model::{Architecture, Band, Model, Place, STAGES};
use crate::plan::int8::{Int8Regions, Passes, StagePasses, Strips, downsample_strips, input_row, int8_arena_bytes};

/// The arena, cut up as an [`Int8Regions`] says.
struct Buffers<'a> {
    map: &'a mut [i16],
    rows: &'a mut [i16],
    values: &'a mut [i16],
    bytes: &'a mut [i8],
    hidden: &'a mut [i8],
    bias: &'a mut [i32],
    squares: &'a mut [u64],
    multipliers: &'a mut [i16],
}

impl<'a> Buffers<'a> {
    fn cut(arena: &'a mut [u8], regions: &Int8Regions) -> Result<Self, EmbedError> {
        let mut arena = Arena::new(arena);
        Ok(Self {
            map: arena.take(regions.map)?,
            rows: arena.take(regions.rows)?,
            values: arena.take(regions.values)?,
            bytes: arena.take(regions.bytes)?,
            hidden: arena.take(regions.hidden)?,
            bias: arena.take(regions.bias)?,
            squares: arena.take(regions.squares)?,
            multipliers: arena.take(regions.multipliers)?,
        })
    }
}

/// The encoder of one model.
#[derive(Clone, Copy)]
pub(crate) struct Engine<'m> {
    pub model: &'m Model<'m>,
    pub passes: StagePasses,
    pub kernels: &'static Int8Kernels,
}

impl<'m> Engine<'m> {
    fn arch(&self) -> &'m Architecture {
        self.model.architecture()
    }

    fn passes(&self, stage: usize) -> Passes {
        self.passes.get(stage).copied().unwrap_or(Passes::One)
    }

    /// Bytes of the arena.
    pub(crate) fn arena_bytes(&self) -> usize {
        int8_arena_bytes(self.arch(), self.model.bands().len(), self.passes)
    }

    /// Does one step; `None` once `out` holds the embedding. Lengths and alignment were checked by [`super::Encoder::start`].
    ///
    /// # Errors
    /// If the arena is too small after all.
    pub(crate) fn step(
        &self,
        tile: &Tile<'_>,
        arena: &mut [u8],
        at: Cursor,
        out: &mut [f32],
    ) -> Result<Option<Cursor>, EmbedError> {
        let arch = self.arch();
        let next = match at.place {
            Place::Stem => {
                self.stem(tile, Buffers::cut(arena, &Int8Regions::stem(arch, self.model.bands().len()))?, at.row)?;
                at.at_row(at.row + 1)
            }
            Place::Downsample { stage } => {
                let stage = usize::from(stage);
                self.downsample(stage, Buffers::cut(arena, &Int8Regions::downsample(arch, stage))?, at.row)?;
                at.at_row(at.row + 1)
            }
            Place::Block { stage, block } => {
                let (stage, block) = (usize::from(stage), usize::from(block));
                let regions = Int8Regions::block(arch, stage, self.passes(stage));
                self.block(stage, block, Buffers::cut(arena, &regions)?, at)?;
                at.at_row(at.row + 1)
            }
            Place::Head => {
                self.head(Buffers::cut(arena, &Int8Regions::head(arch))?, out)?;
                return Ok(None);
            }
        };
        Ok(Some(self.settle(next)))
    }

    /// Goes on to the next pass or place once all rows are done.
    fn settle(&self, at: Cursor) -> Cursor {
        let arch = self.arch();
        let rows = match at.place {
            Place::Stem => arch.grid(0),
            Place::Downsample { stage } => downsample_strips(arch.grid(stage.into())).count(),
            Place::Block { stage, .. } => {
                let stage = usize::from(stage);
                Strips::of(arch.grid(stage), self.passes(stage)).count()
            }
            Place::Head => 1,
        };
        if at.row < rows {
            return at;
        }
        match at.place {
            Place::Block { .. } if at.pass == 0 => at.next_pass(),
            _ => at.next_place(arch).unwrap_or(at),
        }
    }

    /// Sections 2 and 4.7: one row of the residual map of stage 0 behind a patchify stem.
    fn patchify(&self, tile: &Tile<'_>, buffers: Buffers<'_>, y: usize) -> Result<(), EmbedError> {
        let (arch, kernels, bands) = (self.arch(), self.kernels, self.model.bands());
        let stem = Patchify::of(self.model);
        let (layer, norm) = stem.layers(arch, bands.len());
        let (k, grid, run) = (arch.stem_stride(), arch.grid(0), arch.stem_stride() * bands.len());
        let patches = buffers.values;
        patches.fill(0);
        for row in 0..k {
            self.input_row(tile, bands, &stem.input(), y * k + row, buffers.rows)?;
            for (patch, run_of_row) in
                patches.chunks_exact_mut(layer.inputs.max(1)).zip(buffers.rows.chunks_exact(run.max(1)))
            {
                part_mut(patch, row * run, run)?.copy_from_slice(run_of_row);
            }
        }
        // A patch is read in three parts, as if they were of three rows.
        let parts = [0, 1, 2].map(|i| patches.get(i * layer.inputs / 3..).unwrap_or_default());
        let output = part_mut(buffers.map, y * grid * layer.outputs, grid * layer.outputs)?;
        (kernels.initial)(parts, layer.inputs, &layer, output);
        (kernels.layer_norm_i16)(output, &norm);
        (kernels.affine)(output, stem.gain, stem.offset, stem.affine_shift);
        Ok(())
    }

    /// Sections 2 and 4: one row of the residual map of stage 0.
    fn stem(&self, tile: &Tile<'_>, buffers: Buffers<'_>, y: usize) -> Result<(), EmbedError> {
        if self.arch().is_patchify() {
            return self.patchify(tile, buffers, y);
        }
        let (arch, kernels, bands) = (self.arch(), self.kernels, self.model.bands());
        let stem = Stem::of(self.model);
        let (channels, k, width) = (stored(arch.dim(0)), arch.stem_stride(), arch.initial_grid());
        let [initial_norm, stem_norm] = stem.norms(arch);
        let (row_len, slots) = (input_row(arch, bands.len()), k + 2);
        // Row `r + padding` of the tile stands in slot `(r + stem padding) % slots`, where `r` counts from the first that is read.
        let first = y * k;
        let fresh = if y == 0 { 0 } else { first + 2 };
        for row in fresh..first + slots {
            let to = part_mut(buffers.rows, row % slots * row_len, row_len)?;
            self.input_row(tile, bands, &stem.input(), row.wrapping_sub(arch.stem_pad() + arch.initial_padding()), to)?;
        }
        for (step, values) in buffers.values.chunks_exact_mut((width * channels).max(1)).enumerate() {
            let row = first + step;
            if row.wrapping_sub(arch.stem_pad()) >= width {
                values.fill(0);
                continue;
            }
            let input = |i| part(buffers.rows, (row + i) % slots * row_len, row_len);
            let rows = [input(0)?, input(1)?, input(2)?];
            (kernels.initial)(rows, bands.len(), &stem.initial(arch, bands.len()), values);
            (kernels.layer_norm_i16)(values, &initial_norm);
            (kernels.affine)(values, stem.initial_gain, stem.initial_offset, stem.initial_affine_shift);
            (kernels.lookup)(values, stem.gelu);
        }
        let grid = arch.grid(0);
        let output = part_mut(buffers.map, y * grid * channels, grid * channels)?;
        (kernels.stem)(buffers.values, k, arch.stem_pad(), &stem.stem(), output);
        (kernels.layer_norm_i16)(output, &stem_norm);
        (kernels.affine)(output, stem.stem_gain, stem.stem_offset, stem.stem_affine_shift);
        Ok(())
    }

    /// Section 2: one row of the tile, `[padding + width + padding, bands]`; all zeros if there is no such row.
    fn input_row(
        &self,
        tile: &Tile<'_>,
        bands: &[Band],
        input: &Input<'_>,
        y: usize,
        row: &mut [i16],
    ) -> Result<(), EmbedError> {
        let arch = self.arch();
        let side = usize::from(arch.tile_size);
        row.fill(0);
        if y >= side {
            return Ok(());
        }
        let padding = arch.initial_padding() * bands.len();
        let scales = input.multiplier.iter().zip(input.offset);
        for ((b, band), (&multiplier, &offset)) in bands.iter().enumerate().zip(scales) {
            let multiplier = i64::from(multiplier);
            // No stored integer equals a "no data" value that is none.
            let no_data = band.no_data.map_or(-1, |v| if v == libm::truncf(v) { v as i32 } else { -1 });
            let integer = |stored: u16| {
                let value = i64::from(stored).wrapping_mul(multiplier).wrapping_add(offset) >> input.shift;
                let value = value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
                if i32::from(stored) == no_data { 0 } else { value }
            };
            let from = (b * side + y) * side;
            let to = row.iter_mut().skip(padding + b).step_by(bands.len().max(1));
            match tile {
                Tile::U8(v) => to.zip(part(v, from, side)?).for_each(|(to, &v)| *to = integer(u16::from(v))),
                Tile::U16(v) => to.zip(part(v, from, side)?).for_each(|(to, &v)| *to = integer(v)),
                Tile::F32(v) => {
                    let scale = (1 << INPUT_FRACTION_BITS) as f32 / band.std;
                    let band = FloatBand { mean: band.mean, scale, no_data: band.no_data };
                    let row = row.get_mut(padding + b..).unwrap_or_default();
                    (self.kernels.input)(part(v, from, side)?, &band, row, bands.len().max(1));
                }
            }
        }
        Ok(())
    }

    /// Section 6: one strip of the next residual map.
    fn downsample(&self, stage: usize, buffers: Buffers<'_>, strip: usize) -> Result<(), EmbedError> {
        let (arch, kernels) = (self.arch(), self.kernels);
        let (norm, layer) = Downsample::of(self.model, stage).layers(arch, stage);
        let (from, grid, before) = (arch.grid(stage - 1), arch.grid(stage), norm.channels);
        if strip == 0 {
            (kernels.prepare)(&layer, buffers.bias);
        }
        let Area { y, .. } = downsample_strips(grid).area(strip);
        let pair = (2 * before).max(1);
        let (row, patches) = buffers.bytes.split_at_mut_checked(grid * pair).unwrap_or_default();
        let patches = part_mut(patches, 0, y.len() * grid * 2 * pair)?;
        for (patches, y) in patches.chunks_exact_mut((grid * 2 * pair).max(1)).zip(y.clone()) {
            for ky in 0..2 {
                let values = part(buffers.map, (2 * y + ky) * from * before, grid * pair)?;
                (kernels.layer_norm)(values, &norm, row);
                // Of the pairs of a patch, one above the other, number `ky`.
                let patches = patches.chunks_exact_mut(pair).skip(ky).step_by(2);
                for (patch, pair) in patches.zip(row.chunks_exact(pair)) {
                    patch.iter_mut().zip(pair).for_each(|(to, &from)| *to = from);
                }
            }
        }
        let in_place = Int8Regions::in_place(arch, stage);
        let next = if in_place { &mut *buffers.map } else { &mut *buffers.values };
        let residual = part_mut(next, y.start * grid * layer.outputs, y.len() * grid * layer.outputs)?;
        residual.fill(0);
        (kernels.project)(patches, &Dense { bias: buffers.bias, ..layer }, residual);
        if !in_place && y.end == grid {
            buffers.map.iter_mut().zip(buffers.values).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    /// Section 5: one strip of one pass over a block.
    fn block(&self, stage: usize, block: usize, buffers: Buffers<'_>, at: Cursor) -> Result<(), EmbedError> {
        let (arch, kernels, passes) = (self.arch(), self.kernels, self.passes(stage));
        let weights = Block::of(self.model, stage, block);
        let (depthwise, norm) = weights.spatial(arch.dim(stage));
        let (expand, project) = (weights.expand(arch.dim(stage)), weights.project(arch.dim(stage)));
        let (channels, grid) = (norm.channels, arch.grid(stage));
        let wide = 4 * channels;
        let area = Strips::of(grid, passes).area(at.row);
        let pixels = area.y.len() * area.x.len();
        let first = area.y.start * grid + area.x.start;
        let Buffers { map, rows: ring, values, bytes, hidden, bias, squares, multipliers } = buffers;
        let (expand_bias, project_bias) = bias.split_at_mut_checked(wide).unwrap_or_default();
        if at.row == 0 {
            if at.pass == 0 {
                squares.fill(0);
            } else {
                grn_multipliers(kernels, squares, expand_bias, 4 * arch.dim(stage), &weights, multipliers);
            }
            (kernels.prepare)(&expand, expand_bias);
            (kernels.prepare)(&project, project_bias);
        }
        let hidden = match passes {
            Passes::One => part_mut(hidden, first * wide, pixels * wide)?,
            Passes::Two => part_mut(hidden, 0, pixels * wide)?,
        };
        if at.pass == 0 || passes == Passes::Two {
            let kept = if at.pass == 1 { area.y.end } else { 0 };
            if kept > 0 && area.x.start == 0 {
                // The row is about to change, and rows below it still need it.
                let (row, len) = (area.y.start, grid * channels);
                let kept = part_mut(ring, row % RING_ROWS * len, len)?;
                kept.iter_mut().zip(part(map, row * len, len)?).for_each(|(to, &from)| *to = from);
            }
            let rows = Rows { map, ring, first: kept, side: grid, channels };
            let (values, bytes) = (part_mut(values, 0, pixels * channels)?, part_mut(bytes, 0, pixels * channels)?);
            (kernels.depthwise)(&rows, &area, &depthwise, values);
            (kernels.layer_norm)(values, &norm, bytes);
            let gelu = Gelu { zero_point: weights.zero_point, table: weights.gelu };
            let layer = Dense { bias: expand_bias, ..expand };
            (kernels.expand)(bytes, &layer, &gelu, hidden, squares);
        }
        if at.pass == 1 {
            let residual = part_mut(map, first * channels, pixels * channels)?;
            let layer = Dense { bias: project_bias, ..project };
            if weights.is_raised() {
                return project_raised(kernels, hidden, weights.gelu, multipliers, &layer, values, residual);
            }
            (kernels.activate)(hidden, weights.gelu, multipliers);
            (kernels.project)(hidden, &layer, residual);
        }
        Ok(())
    }

    /// Section 7: mean over the last map, LayerNorm, embedding.
    fn head(&self, buffers: Buffers<'_>, out: &mut [f32]) -> Result<(), EmbedError> {
        let arch = self.arch();
        let head = Head::of(self.model);
        let (channels, grid) = (stored(arch.dim(STAGES - 1)), arch.grid(STAGES - 1));
        let pooled = buffers.bias;
        pooled.fill(0);
        for pixel in buffers.map.chunks_exact(channels.max(1)) {
            pooled.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v));
        }
        // At most 32 x 32 pixels of 16 bits: moved up by 2^20 pixels' worth, a sum is positive, and fits 32 bits.
        let area = (grid * grid).max(1) as u32;
        for value in pooled.iter_mut() {
            let moved = (*value << POOL_BITS) + ((area << 20) + area / 2) as i32;
            *value = (moved as u32 / area) as i32 - (1 << 20);
        }
        let pooled = part_mut(pooled, 0, arch.embedding_dimension())?;
        pooled_layer_norm(pooled, head.epsilon);
        let unit = 1.0 / (1u32 << head.fraction_bits) as f32;
        let affine = head.gain.iter().zip(head.offset);
        for ((&normalized, out), (&gain, &offset)) in pooled.iter().zip(out).zip(affine) {
            let product = i64::from(normalized).wrapping_mul(i64::from(gain));
            let value = product.wrapping_add(offset) >> head.shift;
            *out = f32::from(value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16) * unit;
        }
        Ok(())
    }
}

/// Section 5.6: the second pointwise layer with inputs of 14 bits, in two products. What the depthwise convolution left in `values` is
/// no longer needed: the lower halves of some pixels' inputs stand there, of half a strip at least, as a strip has two pixels or more.
fn project_raised(
    kernels: &Int8Kernels,
    hidden: &mut [i8],
    table: &Table,
    multipliers: &[i16],
    layer: &Dense<'_>,
    values: &mut [i16],
    residual: &mut [i16],
) -> Result<(), EmbedError> {
    let (wide, channels) = (layer.inputs.max(1), layer.outputs.max(1));
    let low: &mut [i8] = bytemuck::try_cast_slice_mut(values).unwrap_or_default();
    let pixels = (low.len() / wide).max(1);
    let lower = Dense { shift: layer.shift + LOW_BITS, ..*layer };
    let parts = hidden.chunks_mut((pixels * wide).max(1)).zip(residual.chunks_mut((pixels * channels).max(1)));
    for (hidden, residual) in parts {
        let low = part_mut(low, 0, hidden.len())?;
        (kernels.activate_split)(hidden, table, multipliers, low);
        (kernels.project)(hidden, layer, residual);
        (kernels.project)(low, &lower, residual);
    }
    Ok(())
}

/// Section 5.4: from the sums of squares (overwritten by the norms) to one multiplier a hidden channel; `count` channels count.
fn grn_multipliers(
    kernels: &Int8Kernels,
    squares: &mut [u64],
    roots: &mut [i32],
    count: usize,
    weights: &Block<'_>,
    multipliers: &mut [i16],
) {
    let roots: &mut [u32] = bytemuck::try_cast_slice_mut(roots).unwrap_or_default();
    for (square, root) in squares.iter_mut().zip(&mut *roots) {
        // `square` is below 2^41 for every map; its lower bits make way for the shift.
        let scale = even_scale(*square);
        *root = shift_by(*square, scale) as u32;
        *square = scale as u64;
    }
    (kernels.square_roots)(roots);
    let mut total = weights.grn_epsilon;
    for (square, &root) in squares.iter_mut().zip(&*roots) {
        let half = *square as i64 as i32 / 2;
        *square = shift_by(u64::from(root) << NORM_BITS, -half);
        total += *square;
    }
    let scale = 31 - (63 - total.max(1).leading_zeros() as i32);
    let reciprocal = u64::from(reciprocal_q63(shift_by(total.max(1), -scale) as u32));
    let constants = weights.grn_gain.iter().zip(weights.grn_slope);
    for ((multiplier, &norm), (&gain, &slope)) in multipliers.iter_mut().zip(&*squares).zip(constants) {
        // The norm's share of the total, with 32 fractional bits.
        let share = (shift_by(norm, -scale) * reciprocal) >> 31;
        let ratio = ((share * count as u64) >> (32 - RATIO_BITS)) as i64;
        let slope = i64::from(slope).wrapping_mul(ratio);
        let value = i64::from(gain) + (slope.wrapping_add(1 << (RATIO_BITS - 1)) >> RATIO_BITS);
        *multiplier = value.clamp(-i64::from(i16::MAX), i64::from(i16::MAX)) as i16;
    }
}

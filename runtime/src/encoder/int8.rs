//! The integer encoder: int8 weights and matrix inputs, an int16 residual stream, 32 and 64-bit sums; no floating point but the
//! input of f32 tiles and the exact scaling of the result.
//!
//! `docs/integer-arithmetic.md` states every operation to the bit; this file and the scalar kernels are its reference. A step is one
//! row of the stem, one strip of a downsampling, one strip of one pass over a block, or the head: [`crate::plan::int8`] says how long strips
//! are, and what of the arena each step uses.

use super::EmbedError;
use super::arena::Arena;
use super::cursor::Cursor;
use crate::Tile;
use crate::kernels::fixed::*;
use crate::kernels::int8::{Area, Gelu, Int8Kernels, RING_ROWS, Rows};
use crate::model::int8_layout::{
    Block, Downsample, Head, INPUT_FRACTION_BITS, NORM_BITS, POOL_BITS, RATIO_BITS, Stem, stored,
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
                self.stem(tile, Buffers::cut(arena, &Int8Regions::stem(arch, self.model.bands().len()))?, at.row);
                Cursor { row: at.row + 1, ..at }
            }
            Place::Downsample { stage } => {
                let stage = usize::from(stage);
                self.downsample(stage, Buffers::cut(arena, &Int8Regions::downsample(arch, stage))?, at.row);
                Cursor { row: at.row + 1, ..at }
            }
            Place::Block { stage, block } => {
                let (stage, block) = (usize::from(stage), usize::from(block));
                let regions = Int8Regions::block(arch, stage, self.passes[stage]);
                self.block(stage, block, Buffers::cut(arena, &regions)?, at);
                Cursor { row: at.row + 1, ..at }
            }
            Place::Head => {
                self.head(Buffers::cut(arena, &Int8Regions::head(arch))?, out);
                return Ok(None);
            }
        };
        Ok(Some(self.settle(next)))
    }

    /// Goes on to the next pass or place once all rows are done.
    fn settle(&self, at: Cursor) -> Cursor {
        let arch = self.arch();
        let rows = match at.place {
            Place::Stem => arch.grids()[0],
            Place::Downsample { stage } => downsample_strips(arch.grids()[usize::from(stage)]).count(),
            Place::Block { stage, .. } => {
                let stage = usize::from(stage);
                Strips::of(arch.grids()[stage], self.passes[stage]).count()
            }
            Place::Head => 1,
        };
        if at.row < rows {
            return at;
        }
        match at.place {
            Place::Block { .. } if at.pass == 0 => Cursor { pass: 1, row: 0, ..at },
            place => Cursor::after(arch, place),
        }
    }

    /// Sections 2 and 4: one row of the residual map of stage 0.
    fn stem(&self, tile: &Tile<'_>, buffers: Buffers<'_>, y: usize) {
        let (arch, kernels, bands) = (self.arch(), self.kernels, self.model.bands());
        let stem = Stem::of(self.model);
        let (channels, k, width) = (stored(arch.dim(0)), arch.stem_stride(), arch.initial_grid());
        let [initial_norm, stem_norm] = stem.norms(arch);
        let (row_len, slots) = (input_row(arch, bands.len()), k + 2);
        // Row `r + padding` of the tile stands in slot `(r + stem padding) % slots`, where `r` counts from the first that is read.
        let first = y * k;
        let fresh = if y == 0 { 0 } else { first + 2 };
        for row in fresh..first + slots {
            let to = &mut buffers.rows[row % slots * row_len..][..row_len];
            self.input_row(tile, bands, &stem, row.wrapping_sub(arch.stem_pad() + arch.initial_padding()), to);
        }
        for (step, values) in buffers.values.chunks_exact_mut(width * channels).enumerate() {
            let row = first + step;
            if row.wrapping_sub(arch.stem_pad()) >= width {
                values.fill(0);
                continue;
            }
            let rows = [0, 1, 2].map(|i| &buffers.rows[(row + i) % slots * row_len..][..row_len]);
            (kernels.initial)(rows, bands.len(), &stem.initial(arch, bands.len()), values);
            (kernels.layer_norm_i16)(values, &initial_norm);
            (kernels.affine)(values, stem.initial_gain, stem.initial_offset, stem.initial_affine_shift);
            (kernels.lookup)(values, stem.gelu);
        }
        let grid = arch.grids()[0];
        let output = &mut buffers.map[y * grid * channels..][..grid * channels];
        (kernels.stem)(buffers.values, k, arch.stem_pad(), &stem.stem(), output);
        (kernels.layer_norm_i16)(output, &stem_norm);
        (kernels.affine)(output, stem.stem_gain, stem.stem_offset, stem.stem_affine_shift);
    }

    /// Section 2: one row of the tile, `[padding + width + padding, bands]`; all zeros if there is no such row.
    fn input_row(&self, tile: &Tile<'_>, bands: &[Band], stem: &Stem<'_>, y: usize, row: &mut [i16]) {
        let arch = self.arch();
        let side = usize::from(arch.tile_size);
        row.fill(0);
        if y >= side {
            return;
        }
        let row = &mut row[arch.initial_padding() * bands.len()..];
        for (b, band) in bands.iter().enumerate() {
            let (multiplier, offset) = (i64::from(stem.input_multiplier[b]), stem.input_offset[b]);
            // No stored integer equals a "no data" value that is none.
            let no_data = band.no_data.map_or(-1, |v| if v == libm::truncf(v) { v as i32 } else { -1 });
            let integer = |stored: u16| {
                let value = i64::from(stored).wrapping_mul(multiplier).wrapping_add(offset) >> stem.input_shift;
                let value = value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
                if i32::from(stored) == no_data { 0 } else { value }
            };
            let scale = (1 << INPUT_FRACTION_BITS) as f32 / band.std;
            let float = |stored: f32| {
                let value = libm::rintf((stored - band.mean) * scale) as i16;
                if !stored.is_finite() || band.no_data == Some(stored) { 0 } else { value }
            };
            let from = (b * side + y) * side;
            let from = from..from + side;
            let to = row.iter_mut().skip(b).step_by(bands.len());
            match tile {
                Tile::U8(v) => to.zip(&v[from]).for_each(|(to, &v)| *to = integer(u16::from(v))),
                Tile::U16(v) => to.zip(&v[from]).for_each(|(to, &v)| *to = integer(v)),
                Tile::F32(v) => to.zip(&v[from]).for_each(|(to, &v)| *to = float(v)),
            }
        }
    }

    /// Section 6: one strip of the next residual map.
    fn downsample(&self, stage: usize, buffers: Buffers<'_>, strip: usize) {
        let (arch, kernels) = (self.arch(), self.kernels);
        let (norm, layer) = Downsample::of(self.model, stage).layers(arch, stage);
        let (from, grid, before) = (arch.grids()[stage - 1], arch.grids()[stage], norm.channels);
        if strip == 0 {
            (kernels.prepare)(&layer, buffers.bias);
        }
        let Area { y, .. } = downsample_strips(grid).area(strip);
        let (row, patches) = buffers.bytes.split_at_mut(2 * grid * before);
        let patches = &mut patches[..y.len() * grid * 4 * before];
        for (patches, y) in patches.chunks_exact_mut(grid * 4 * before).zip(y.clone()) {
            for ky in 0..2 {
                let values = &buffers.map[(2 * y + ky) * from * before..][..2 * grid * before];
                (kernels.layer_norm)(values, &norm, row);
                for (patch, pair) in patches.chunks_exact_mut(4 * before).zip(row.chunks_exact(2 * before)) {
                    patch[ky * 2 * before..][..2 * before].copy_from_slice(pair);
                }
            }
        }
        let in_place = Int8Regions::in_place(arch, stage);
        let next = if in_place { &mut *buffers.map } else { &mut *buffers.values };
        let residual = &mut next[y.start * grid * layer.outputs..y.end * grid * layer.outputs];
        residual.fill(0);
        (kernels.project)(patches, &crate::kernels::int8::Dense { bias: buffers.bias, ..layer }, residual);
        if !in_place && y.end == grid {
            buffers.map[..buffers.values.len()].copy_from_slice(buffers.values);
        }
    }

    /// Section 5: one strip of one pass over a block.
    fn block(&self, stage: usize, block: usize, buffers: Buffers<'_>, at: Cursor) {
        let (arch, kernels, passes) = (self.arch(), self.kernels, self.passes[stage]);
        let weights = Block::of(self.model, stage, block);
        let (depthwise, norm) = weights.spatial(arch.dim(stage));
        let (expand, project) = (weights.expand(arch.dim(stage)), weights.project(arch.dim(stage)));
        let (channels, grid) = (norm.channels, arch.grids()[stage]);
        let wide = 4 * channels;
        let area = Strips::of(grid, passes).area(at.row);
        let pixels = area.y.len() * area.x.len();
        let first = area.y.start * grid + area.x.start;
        let Buffers { map, rows: ring, values, bytes, hidden, bias, squares, multipliers } = buffers;
        if at.row == 0 {
            if at.pass == 0 {
                squares.fill(0);
            } else {
                grn_multipliers(kernels, squares, &mut bias[..wide], 4 * arch.dim(stage), &weights, multipliers);
            }
            (kernels.prepare)(&expand, &mut bias[..wide]);
            (kernels.prepare)(&project, &mut bias[wide..]);
        }
        let (expand_bias, project_bias) = bias.split_at(wide);
        let hidden = match passes {
            Passes::One => &mut hidden[first * wide..][..pixels * wide],
            Passes::Two => &mut hidden[..pixels * wide],
        };
        if at.pass == 0 || passes == Passes::Two {
            let kept = if at.pass == 1 { area.y.end } else { 0 };
            if kept > 0 && area.x.start == 0 {
                // The row is about to change, and rows below it still need it.
                let (row, len) = (area.y.start, grid * channels);
                ring[row % RING_ROWS * len..][..len].copy_from_slice(&map[row * len..][..len]);
            }
            let rows = Rows { map, ring, first: kept, side: grid, channels };
            let (values, bytes) = (&mut values[..pixels * channels], &mut bytes[..pixels * channels]);
            (kernels.depthwise)(&rows, &area, &depthwise, values);
            (kernels.layer_norm)(values, &norm, bytes);
            let gelu = Gelu { zero_point: weights.zero_point, table: weights.gelu };
            let layer = crate::kernels::int8::Dense { bias: expand_bias, ..expand };
            (kernels.expand)(bytes, &layer, &gelu, hidden, squares);
        }
        if at.pass == 1 {
            (kernels.activate)(hidden, weights.gelu, multipliers);
            let layer = crate::kernels::int8::Dense { bias: project_bias, ..project };
            (kernels.project)(hidden, &layer, &mut map[first * channels..][..pixels * channels]);
        }
    }

    /// Section 7: mean over the last map, LayerNorm, embedding.
    fn head(&self, buffers: Buffers<'_>, out: &mut [f32]) {
        let arch = self.arch();
        let head = Head::of(self.model);
        let (channels, grid) = (stored(arch.dim(STAGES - 1)), arch.grids()[STAGES - 1]);
        let pooled = buffers.bias;
        pooled.fill(0);
        for pixel in buffers.map.chunks_exact(channels) {
            pooled.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v));
        }
        // At most 32 x 32 pixels of 16 bits: moved up by 2^20 pixels' worth, a sum is positive, and fits 32 bits.
        let area = (grid * grid) as u32;
        for value in pooled.iter_mut() {
            let moved = (*value << POOL_BITS) + ((area << 20) + area / 2) as i32;
            *value = (moved as u32 / area) as i32 - (1 << 20);
        }
        let pooled = &mut pooled[..arch.embedding_dimension()];
        pooled_layer_norm(pooled, head.epsilon);
        let unit = 1.0 / (1u32 << head.fraction_bits) as f32;
        for (c, (&normalized, out)) in pooled.iter().zip(out).enumerate() {
            let product = i64::from(normalized).wrapping_mul(i64::from(head.gain[c]));
            let value = product.wrapping_add(head.offset[c]) >> head.shift;
            *out = f32::from(value.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16) * unit;
        }
    }
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
    let roots: &mut [u32] = bytemuck::cast_slice_mut(roots);
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
    for (c, multiplier) in multipliers.iter_mut().enumerate() {
        // The norm's share of the total, with 32 fractional bits.
        let share = (shift_by(squares[c], -scale) * reciprocal) >> 31;
        let ratio = ((share * count as u64) >> (32 - RATIO_BITS)) as i64;
        let slope = i64::from(weights.grn_slope[c]).wrapping_mul(ratio);
        let value = i64::from(weights.grn_gain[c]) + (slope.wrapping_add(1 << (RATIO_BITS - 1)) >> RATIO_BITS);
        *multiplier = value.clamp(-i64::from(i16::MAX), i64::from(i16::MAX)) as i16;
    }
}

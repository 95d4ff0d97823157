//! Every integer kernel of every set that this processor runs, at the shapes of an atto of 12 bands, 56 x 56 pixels and patch 8.
//!
//! Elements are multiply-accumulates where a kernel has them, and values otherwise, so that sets compare. A benchmark is called
//! `KERNEL, SHAPE/SET`; `cargo bench -p nadir-benches --bench kernels -- expand` runs those whose name has `expand` in it. How long a
//! kernel takes does not depend on the values, but for one thing (weights of -128, which no quantized model has), so that those which work in
//! place start from what they left.
//!
//! The float kernels are not public, and show only in whole embeddings (`encoder.rs`).

use std::time::Duration;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use nadir::kernels::fixed::LayerNorm;
use nadir::kernels::int8::{Area, Dense, Depthwise, FloatBand, GROUP, Gelu, Int8Kernels, Norm, Rows, Table};
use nadir::model::int8_layout::{initial_segment, panels, stored};
use nadir::model::{Architecture, STAGES};
use nadir::plan::int8::{Passes, Strips, downsample_strips};
use nadir_formats::AlignedBytes;

const BANDS: usize = 12;

/// Random values of any integer type, at a multiple of 64 bytes as in a model and an arena.
struct Values(AlignedBytes);

impl Values {
    fn random<T: Pod>(count: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = AlignedBytes::zeroed(count * size_of::<T>());
        for byte in bytes.iter_mut() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
        Self(bytes)
    }

    fn get<T: Pod>(&self) -> &[T] {
        cast_slice(&self.0)
    }

    fn get_mut<T: Pod>(&mut self) -> &mut [T] {
        cast_slice_mut(&mut self.0)
    }
}

/// A matrix layer.
struct Layer {
    weight: Values,
    bias: Values,
    multiplier: Values,
    inputs: usize,
    outputs: usize,
}

impl Layer {
    fn random(inputs: usize, outputs: usize) -> Self {
        let whole = panels(outputs);
        let mut multiplier = Values::random::<i16>(whole);
        multiplier.get_mut::<i16>().iter_mut().for_each(|v| *v &= i16::MAX);
        let mut weight = Values::random::<i8>(inputs * whole);
        weight.get_mut::<i8>().iter_mut().for_each(|v| *v = (*v).max(-127));
        Self { weight, bias: Values::random::<i32>(whole), multiplier, inputs, outputs }
    }

    fn dense(&self) -> Dense<'_> {
        let Self { inputs, outputs, .. } = *self;
        let (bias, multiplier) = (self.bias.get(), self.multiplier.get());
        Dense { weight: self.weight.get(), bias, multiplier, shift: 8, inputs, outputs }
    }

    /// The bias that `set` wants.
    fn prepared(&self, set: &Int8Kernels) -> Vec<i32> {
        let mut bias = vec![0; panels(self.outputs)];
        (set.prepare)(&self.dense(), &mut bias);
        bias
    }

    fn project(&self, set: &Int8Kernels, bencher: &mut Bencher<'_>, pixels: usize) {
        let (bias, input) = (self.prepared(set), Values::random::<i8>(pixels * self.inputs));
        let mut residual = Values::random::<i16>(pixels * self.outputs);
        let layer = Dense { bias: &bias, ..self.dense() };
        bencher.iter(|| (set.project)(input.get(), &layer, residual.get_mut()));
    }
}

/// One benchmark of each set; `elements` are those of a call.
fn each_set(criterion: &mut Criterion, name: &str, elements: usize, run: impl Fn(&Int8Kernels, &mut Bencher<'_>)) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(elements as u64));
    for set in Int8Kernels::available() {
        group.bench_function(set.name, |bencher| run(set, bencher));
    }
    group.finish();
}

fn norm(channels: usize) -> Norm {
    let constants = LayerNorm { gain: 3 << 27, exponent: 1, epsilon: 1 << 20 };
    Norm { constants, count: channels as u32, channels }
}

fn table() -> Table {
    let mut table = [0; _];
    table.iter_mut().zip(-128..).for_each(|(value, index): (&mut i16, i16)| *value = (index * 31).max(-100));
    table
}

fn depthwise_layer<'a>(weight: &'a Values, bias: &'a Values, multiplier: &'a Values) -> Depthwise<'a> {
    Depthwise { weight: weight.get(), bias: bias.get(), multiplier: multiplier.get(), shift: 8 }
}

/// A row of the stem: input, initial convolution, LayerNorm, affine, GELU, depthwise stem.
fn stem(criterion: &mut Criterion, arch: &Architecture) {
    let (channels, width, side) = (stored(arch.dim(0)), arch.initial_grid(), usize::from(arch.tile_size));
    let shape = format!("{width} pixels of {channels}");
    each_set(criterion, &format!("input, {side} pixels"), side, |set, bencher| {
        let values: Vec<f32> = (0..side).map(|i| i as f32 * 40.0).collect();
        let mut row = vec![0; side * BANDS];
        let band = FloatBand { mean: 900.0, scale: 0.9, no_data: Some(0.0) };
        bencher.iter(|| (set.input)(&values, &band, &mut row, BANDS));
    });
    let layer = Layer::random(3 * initial_segment(BANDS), channels);
    let name = format!("initial, {width} pixels, {BANDS} bands to {channels}");
    each_set(criterion, &name, width * 9 * BANDS * channels, |set, bencher| {
        let row = Values::random::<i16>((width + 2) * BANDS + GROUP);
        let (rows, mut output) = ([row.get(); 3], Values::random::<i16>(width * channels));
        bencher.iter(|| (set.initial)(rows, BANDS, &layer.dense(), output.get_mut()));
    });
    each_set(criterion, &format!("layer_norm_i16, {shape}"), width * channels, |set, bencher| {
        let mut values = Values::random::<i16>(width * channels);
        bencher.iter(|| (set.layer_norm_i16)(values.get_mut(), &norm(channels)));
    });
    each_set(criterion, &format!("affine, {shape}"), width * channels, |set, bencher| {
        let (mut values, gain, offset) =
            (Values::random::<i16>(width * channels), vec![300; channels], vec![99; channels]);
        bencher.iter(|| (set.affine)(values.get_mut(), &gain, &offset, 8));
    });
    each_set(criterion, &format!("lookup, {shape}"), width * channels, |set, bencher| {
        let (mut values, table) = (Values::random::<i16>(width * channels), table());
        bencher.iter(|| (set.lookup)(values.get_mut(), &table));
    });
    let (k, grid) = (arch.stem_stride(), arch.grid(0));
    let [weight, bias] = [Values::random::<i8>(k * k * channels), Values::random::<i32>(channels)];
    let multiplier = Layer::random(GROUP, channels).multiplier;
    let name = format!("stem, {grid} pixels of {channels}, side {k}");
    each_set(criterion, &name, grid * k * k * channels, |set, bencher| {
        let rows = Values::random::<i16>(k * width * channels);
        let (layer, mut output) =
            (depthwise_layer(&weight, &bias, &multiplier), Values::random::<i16>(grid * channels));
        bencher.iter(|| (set.stem)(rows.get(), k, arch.stem_pad(), &layer, output.get_mut()));
    });
}

/// A strip of a block of each stage, and of the downsampling before it.
fn stages(criterion: &mut Criterion, arch: &Architecture) {
    for stage in 0..STAGES {
        let (grid, channels) = (arch.grid(stage), stored(arch.dim(stage)));
        let strips = Strips::of(grid, Passes::One);
        let area: Area = strips.area(0);
        let (pixels, wide) = (area.y.len() * area.x.len(), 4 * channels);
        let at = format!("stage {stage}, {pixels} pixels");

        if stage > 0 {
            let before = stored(arch.dim(stage - 1));
            let (layer, pixels) = (Layer::random(4 * before, channels), downsample_strips(grid).pixels());
            let name = format!("project, downsample {stage}, {pixels} pixels, {} to {channels}", 4 * before);
            each_set(criterion, &name, pixels * 4 * before * channels, |set, bencher| {
                layer.project(set, bencher, pixels)
            });
        }
        let [weight, bias] = [Values::random::<i8>(49 * channels), Values::random::<i32>(channels)];
        let multiplier = Layer::random(GROUP, channels).multiplier;
        each_set(criterion, &format!("depthwise, {at} of {channels}"), pixels * 49 * channels, |set, bencher| {
            let map = Values::random::<i16>(grid * grid * channels);
            let rows = Rows { map: map.get(), ring: &[], first: 0, side: grid, channels };
            let (layer, mut output) =
                (depthwise_layer(&weight, &bias, &multiplier), Values::random::<i16>(pixels * channels));
            bencher.iter(|| (set.depthwise)(&rows, &area, &layer, output.get_mut()));
        });
        each_set(criterion, &format!("layer_norm, {at} of {channels}"), pixels * channels, |set, bencher| {
            let (values, mut bytes) =
                (Values::random::<i16>(pixels * channels), Values::random::<i8>(pixels * channels));
            bencher.iter(|| (set.layer_norm)(values.get(), &norm(channels), bytes.get_mut()));
        });
        let layer = Layer::random(channels, wide);
        each_set(
            criterion,
            &format!("prepare, stage {stage}, {channels} to {wide}"),
            channels * wide,
            |set, bencher| {
                let mut bias = vec![0; wide];
                bencher.iter(|| (set.prepare)(&layer.dense(), &mut bias));
            },
        );
        each_set(
            criterion,
            &format!("expand, {at}, {channels} to {wide}"),
            pixels * channels * wide,
            |set, bencher| {
                let (bias, table, mut squares) = (layer.prepared(set), table(), vec![0; wide]);
                let (input, mut hidden) =
                    (Values::random::<i8>(pixels * channels), Values::random::<i8>(pixels * wide));
                let (layer, gelu) = (Dense { bias: &bias, ..layer.dense() }, Gelu { zero_point: -20, table: &table });
                bencher.iter(|| {
                    squares.fill(0);
                    (set.expand)(input.get(), &layer, &gelu, hidden.get_mut(), &mut squares);
                });
            },
        );
        each_set(criterion, &format!("square_roots, stage {stage}, {wide}"), wide, |set, bencher| {
            let mut values = Values::random::<u32>(wide);
            bencher.iter(|| (set.square_roots)(values.get_mut()));
        });
        each_set(criterion, &format!("activate, {at} of {wide}"), pixels * wide, |set, bencher| {
            let (mut hidden, table, multipliers) = (Values::random::<i8>(pixels * wide), table(), vec![20000; wide]);
            bencher.iter(|| (set.activate)(hidden.get_mut(), &table, &multipliers));
        });
        let layer = Layer::random(wide, channels);
        let name = format!("project, {at}, {wide} to {channels}");
        each_set(criterion, &name, pixels * channels * wide, |set, bencher| layer.project(set, bencher, pixels));
    }
}

fn kernels(criterion: &mut Criterion) {
    let arch = Architecture::named("atto", 56, 8).expect("a named size");
    stem(criterion, &arch);
    stages(criterion, &arch);
}

criterion_group! {
    name = benches;
    // Some hundred benchmarks of calls that take microseconds.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(60))
        .measurement_time(Duration::from_millis(240))
        .sample_size(20)
        .nresamples(2000);
    targets = kernels
}
criterion_main!(benches);

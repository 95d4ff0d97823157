//! The fused operations against the elementary ones in f64, values and gradients, and these against differences.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use nadir::model::{Architecture, StemPadding};
use nadir_trainer::encoder::Encoder;
use nadir_trainer::mask::Mask;
use nadir_trainer::ops::grid::{Geometry, Grid};
use nadir_trainer::ops::{self, BlockParams, Grn, PatchifyParams, elementary};
use nadir_trainer::params::Params;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Uniform numbers within 1 of 0.
fn random(shape: &[usize], rng: &mut StdRng) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn as_f64(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// |a - b| / |b|, or |a - b| if b is 0.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (as_f64(a), as_f64(b));
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b.powi(2)).sum();
    (difference / if norm == 0.0 { 1.0 } else { norm }).sqrt()
}

/// A number that depends on every output in its own way.
fn score(y: &Tensor) -> Result<Tensor> {
    let n = y.elem_count();
    let weights: Vec<f64> = (0..n).map(|i| ((i * 7919 % 1013) as f64 / 506.0) - 1.0).collect();
    (y * Tensor::from_vec(weights, y.shape(), y.device())?.to_dtype(y.dtype())?)?.sum_all()
}

/// Runs `f` on the values in f32 (fused) and in f64 (elementary); compares the outputs and all gradients but the first
/// `without`.
fn compare(what: &str, values: &[Tensor], without: usize, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype: DType| {
        let vars: Vec<Var> = values.iter().map(|v| Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let gradients = score(&y).unwrap().backward().unwrap();
        (y, vars.iter().skip(without).map(|v| gradients.get(v).unwrap().clone()).collect::<Vec<_>>())
    };
    let ((fused, fused_gradients), (exact, exact_gradients)) = (run(DType::F32), run(DType::F64));
    let error = relative(&fused, &exact);
    assert!(error <= 1e-6, "{what}: relative error {error}");
    for (at, (fused, exact)) in fused_gradients.iter().zip(&exact_gradients).enumerate() {
        let error = relative(fused, exact);
        assert!(error <= 5e-6, "{what}: gradient {}: relative error {error}", at + without);
    }
}

fn block_values(d: usize, rows: usize, rng: &mut StdRng) -> Vec<Tensor> {
    let shapes: [&[usize]; 11] = [
        &[rows, d],
        &[d, 1, 7, 7],
        &[d],
        &[d],
        &[d],
        &[4 * d, d],
        &[4 * d],
        &[1, 1, 1, 4 * d],
        &[1, 1, 1, 4 * d],
        &[d, 4 * d],
        &[d],
    ];
    shapes.iter().map(|shape| random(shape, rng)).collect()
}

fn block(t: &[Tensor], grid: &Grid, grn: Grn) -> Result<Tensor> {
    let p = |i: usize| t[i].clone();
    let params = BlockParams {
        dw_weight: p(1),
        dw_bias: p(2),
        norm_weight: p(3),
        norm_bias: p(4),
        pw1_weight: p(5),
        pw1_bias: p(6),
        grn_gamma: p(7),
        grn_beta: p(8),
        pw2_weight: p(9),
        pw2_bias: p(10),
    };
    ops::block(&t[0], &params, grid, grn, 1e-6, 1e-6)
}

#[test]
fn blocks() {
    let mut rng = StdRng::seed_from_u64(1);
    // Channel numbers that fill vectors, leave rests, and need several.
    for (side, d) in [(5, 3), (9, 8), (4, 24), (3, 70)] {
        let grid = Grid::full(side, 3);
        let values = block_values(d, 3 * side * side, &mut rng);
        for grn in [Grn::Sample, Grn::Batch] {
            compare(&format!("full block {side}x{side}x{d}, {grn:?}"), &values, 0, |t| block(t, &grid, grn));
        }
    }
    for cells in [1, 2, 4] {
        let grid = Grid::masked(&Mask::random(5, 3, 0.6, &mut rng), cells);
        let values = block_values(12, 5 * grid.rows, &mut rng);
        for grn in [Grn::Sample, Grn::Batch] {
            compare(&format!("masked block, {cells} cells, {grn:?}"), &values, 0, |t| block(t, &grid, grn));
        }
    }
}

#[test]
fn linear_and_layer_norm() {
    let mut rng = StdRng::seed_from_u64(2);
    for (rows, inputs, outputs) in [(1, 3, 2), (70, 24, 19), (130, 40, 7)] {
        let values =
            [random(&[rows, inputs], &mut rng), random(&[outputs, inputs], &mut rng), random(&[outputs], &mut rng)];
        compare("linear", &values, 0, |t| ops::linear(&t[0], &t[1], &t[2]));
        let values = [random(&[rows, inputs], &mut rng), random(&[inputs], &mut rng), random(&[inputs], &mut rng)];
        compare("layer norm", &values, 0, |t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-6));
    }
}

#[test]
fn losses() {
    let mut rng = StdRng::seed_from_u64(3);
    let [truth, weights] = [0, 1].map(|_| random(&[90, 101], &mut rng));
    compare("weighted squares", &[random(&[90, 101], &mut rng)], 0, |t| {
        let [truth, weights] = [&truth, &weights].map(|v| v.to_dtype(t[0].dtype()).unwrap());
        ops::weighted_squares(&t[0], &truth, &weights)
    });
    let labels: Vec<u32> = (0..50).map(|i| if i % 5 == 0 { u32::MAX } else { i % 7 }).collect();
    compare("cross entropy", &[random(&[50, 7], &mut rng)], 0, |t| ops::cross_entropy(&t[0], &labels));
}

/// The whole encoder, with every geometry of the stem; tiles get no gradient.
#[test]
fn encoders() {
    let mut rng = StdRng::seed_from_u64(4);
    let small =
        Architecture { dims: [6, 8, 10, 12], depths: [1, 1, 2, 1], ..Architecture::named("yocto", 32, 16).unwrap() };
    for (tile_size, patch_size, stem_padding, masked) in [
        (24, 8, StemPadding::Same, true),
        (24, 8, StemPadding::None, false),
        (32, 16, StemPadding::Same, true),
        (48, 16, StemPadding::None, false),
        (64, 32, StemPadding::None, false),
        (24, 8, StemPadding::Patchify, true),
        (49, 16, StemPadding::Patchify, false),
        (96, 32, StemPadding::Patchify, true),
        (64, 32, StemPadding::Patchify, false),
    ] {
        let arch = Architecture { tile_size, patch_size, stem_padding, ..small };
        let side = usize::from(tile_size) / usize::from(patch_size);
        let mask = masked.then(|| Mask::random(2, side, 0.5, &mut rng));
        let grn = if masked { Grn::Batch } else { Grn::Sample };
        let geometry = Geometry { grn, ..Geometry::new(&arch, 2, mask.as_ref()).unwrap() };
        let names: Vec<String> = Encoder::init(&arch, 3, &mut rng, &Device::Cpu)
            .unwrap()
            .params()
            .vars()
            .filter(|(name, _)| !name.starts_with("norm."))
            .map(|(name, _)| name.to_owned())
            .collect();
        let shapes = nadir_formats::expected_shapes(&arch, 3);
        let size = usize::from(tile_size);
        let mut values = vec![random(&[2, 3, size, size], &mut rng)];
        values.extend(names.iter().map(|name| random(&shapes[name], &mut rng)));
        compare(&format!("encoder {arch:?}"), &values, 1, |t| {
            let tensors: BTreeMap<String, Tensor> = names.iter().cloned().zip(t[1..].iter().cloned()).collect();
            ops::encode(&t[0], &Params::from_tensors(tensors), &arch, &geometry, None)
        });
    }
}

/// Compares some elements of the gradient of `f` by `var` with central differences.
fn compare_with_differences(var: &Var, gradient: &Tensor, f: impl Fn() -> Tensor) {
    let (exact, value) = (as_f64(gradient), var.as_tensor().copy().unwrap());
    let flat = as_f64(&value);
    for at in (0..flat.len()).step_by(1 + flat.len() / 6) {
        let shifted = |by: f64| {
            let mut moved = flat.clone();
            moved[at] += by;
            var.set(&Tensor::from_vec(moved, value.shape(), &Device::Cpu).unwrap()).unwrap();
            f().to_scalar::<f64>().unwrap()
        };
        let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
        var.set(&value).unwrap();
        assert!((slope - exact[at]).abs() <= 1e-6 * (1.0 + slope.abs()), "{slope} and {}", exact[at]);
    }
}

/// The elementary block's gradient by central differences, at channels whose norm is 0 too.
#[test]
fn elementary_gradients_are_those_of_differences() {
    let mut rng = StdRng::seed_from_u64(5);
    let grid = Grid::full(3, 2);
    let values: Vec<Tensor> = block_values(3, 18, &mut rng).iter().map(|v| v.to_dtype(DType::F64).unwrap()).collect();
    let vars: Vec<Var> = values.iter().map(|v| Var::from_tensor(v).unwrap()).collect();
    for grn in [Grn::Sample, Grn::Batch] {
        let f = || {
            let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            score(&block(&tensors, &grid, grn).unwrap()).unwrap()
        };
        let gradients = f().backward().unwrap();
        for var in &vars {
            compare_with_differences(var, gradients.get(var).unwrap(), f);
        }
    }
    let zeros = Var::from_tensor(&Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let [gamma, beta] = [0, 1].map(|_| random(&[3], &mut rng));
    let y = elementary::grn(&zeros, &gamma, &beta, 2, 1e-6).unwrap();
    let gradients = score(&y).unwrap().backward().unwrap();
    assert!(as_f64(gradients.get(&zeros).unwrap()).iter().all(|g| g.is_finite()));
}

/// A patchify stem is a convolution of visible patches: values against candle's convolution, gradients by central differences.
#[test]
fn patchify_stems() {
    let mut rng = StdRng::seed_from_u64(7);
    let named = Architecture::named("yocto", 50, 16).unwrap();
    for (tile_size, masked) in [(50, false), (48, false), (48, true)] {
        let arch = Architecture { tile_size, stem_padding: StemPadding::Patchify, ..named };
        // All patches of a mask, in its order of patches, and some.
        for hidden in if masked { &[0.0, 0.5][..] } else { &[0.0] } {
            let mask = masked.then(|| Mask::random(2, 3, *hidden, &mut rng));
            let geometry = Geometry::new(&arch, 2, mask.as_ref()).unwrap();
            let (side, d) = (usize::from(tile_size), 5);
            let mut x = random(&[2, 3, side, side], &mut rng).to_dtype(DType::F64).unwrap();
            let shapes: [&[usize]; 4] = [&[d, 3, 2, 2], &[d], &[d], &[d]];
            let values = shapes.map(|shape| random(shape, &mut rng).to_dtype(DType::F64).unwrap());

            // All positions, then those that are visible.
            let map = x.conv2d(&values[0], 0, 2, 1, 1).unwrap().permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let rows = map.reshape(((), d)).unwrap().broadcast_add(&values[1]).unwrap();
            let rows = elementary::layer_norm(&rows, &values[2], &values[3], 1e-6).unwrap();
            let grid = &geometry.grids[0];
            let each = grid.side * grid.side;
            let of = |sample: usize| grid.positions(sample).iter().map(move |at| (sample * each) as u32 + at);
            let index: Vec<u32> = (0..2).flat_map(of).collect();
            assert_eq!(index.len(), 2 * grid.rows);
            let wanted = rows.index_select(&Tensor::new(index, &Device::Cpu).unwrap(), 0).unwrap();
            // Hidden pixels may be anything.
            if let Some(pixels) = geometry.pixel_mask(&Device::Cpu).unwrap() {
                let pixels = pixels.broadcast_as(x.shape()).unwrap().to_dtype(DType::U8).unwrap();
                let nan = (x.zeros_like().unwrap() * f64::NAN).unwrap();
                x = pixels.where_cond(&x, &nan).unwrap();
            }
            let vars: Vec<Var> = values.iter().map(|v| Var::from_tensor(v).unwrap()).collect();
            let rows = |dtype: DType| {
                let p = |i: usize| vars[i].to_dtype(dtype).unwrap();
                let p = PatchifyParams { weight: p(0), bias: p(1), norm_weight: p(2), norm_bias: p(3) };
                ops::patchify(&x.to_dtype(dtype).unwrap(), &p, &geometry, 1e-6).unwrap()
            };
            assert!(relative(&rows(DType::F64), &wanted) <= 1e-13 && relative(&rows(DType::F32), &wanted) <= 1e-6);

            let gradients = |dtype| score(&rows(dtype)).unwrap().backward().unwrap();
            let (exact, fused) = (gradients(DType::F64), gradients(DType::F32));
            for (at, var) in vars.iter().enumerate() {
                let error = relative(fused.get(var).unwrap(), exact.get(var).unwrap());
                assert!(error <= 5e-6, "gradient {at}: relative error {error}");
                compare_with_differences(var, exact.get(var).unwrap(), || score(&rows(DType::F64)).unwrap());
            }
        }
    }
}

/// A block all of whose wide channels are zero has finite gradients, fused too.
#[test]
fn zero_norms_have_finite_gradients() {
    let mut rng = StdRng::seed_from_u64(6);
    let grid = Grid::full(3, 2);
    let mut values = block_values(4, 18, &mut rng);
    for i in [5, 6] {
        values[i] = values[i].zeros_like().unwrap();
    }
    for grn in [Grn::Sample, Grn::Batch] {
        compare("block with zero norms", &values, 5, |t| block(t, &grid, grn));
    }
}

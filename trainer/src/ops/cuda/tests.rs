//! The kernels, run on the host and on a GPU if there is one, against the host's own layers and against candle's
//! operations in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use half::bf16;
use nadir::model::{Architecture, StemPadding};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::emulator::Emulator;
use super::linear::{LayerNorm, Linear};
use super::{DeviceLayer, Kind, Launcher, Machine, Memory, View, losses};
use crate::mask::Mask;
use crate::ops::block::Block;
use crate::ops::chain::Layer;
use crate::ops::downsample::Downsample;
use crate::ops::grid::{Geometry, Grid};
use crate::ops::stem::Stem;
use crate::ops::{BlockParams, DownsampleParams, Grn, StemParams, elementary};
use crate::optim::{AdamW, AdamWConfig};
use crate::params::Params;

const EPS: f32 = 1e-6;

/// A machine whose memory tests can fill and read.
pub trait Bench: Machine {
    /// A copy of values, rounded if `kind` says so.
    fn put(&self, kind: Kind, values: &[f32]) -> Memory;

    /// The values of a view of f32 or bf16.
    fn read(&self, view: View) -> Vec<f32>;
}

/// The host with threads in both orders, and a GPU if this is built for one and there is one.
fn machines() -> Vec<Box<dyn Bench>> {
    let mut all: Vec<Box<dyn Bench>> = Vec::new();
    for reversed in [false, true] {
        all.extend(Emulator::new(reversed).map(|machine| Box::new(machine) as Box<dyn Bench>));
    }
    #[cfg(feature = "cuda")]
    match super::device::bench() {
        Some(gpu) => all.push(gpu),
        None => eprintln!("SKIPPED: there is no GPU"),
    }
    all
}

fn random(n: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// |a - b| / |b|.
fn relative(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>().max(f64::MIN_POSITIVE)).sqrt()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Output, gradient of the input (nothing if it has none) and of the parameters.
type Passes = [Vec<f32>; 3];

/// Both passes of a layer on every machine. Those of the host must agree to the bit: the order of the threads must not
/// matter.
fn passes(layer: &dyn DeviceLayer, kind: Kind, x: &[f32], p: &[f32], g: &[f32]) -> Vec<Passes> {
    let run = |machine: &dyn Bench| {
        let l = Launcher::new(machine, kind);
        let (x, p, g) = (machine.put(kind, x), machine.put(Kind::F32, p), machine.put(kind, g));
        let (out, trace) = super::forward(&l, &[layer], x.view(), p.view(), true).unwrap();
        let out_values = machine.read(out.view());
        let (x_grad, p_grad) = super::backward(&l, &[layer], x.view(), p.view(), g.view(), trace.unwrap()).unwrap();
        [out_values, x_grad.map_or(Vec::new(), |x| machine.read(x.view())), machine.read(p_grad.view())]
    };
    let mut all: Vec<Passes> = machines().iter().map(|machine| run(&**machine)).collect();
    if all.len() > 1 {
        let first = all.remove(0);
        assert!(first == all[0], "the result depends on the order of the threads, or is not a number");
    }
    all
}

/// Both passes in f64 by candle's operations.
fn exact(
    shapes: &[Vec<usize>],
    x: (&[usize], &[f32]),
    p: &[f32],
    g: &[f32],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> [Vec<f64>; 3] {
    let var = |values: &[f32], shape: &[usize]| {
        Var::from_tensor(&Tensor::from_vec(wide(values), shape, &Device::Cpu).unwrap()).unwrap()
    };
    let mut vars = vec![var(x.1, x.0)];
    let mut at = 0;
    for shape in shapes {
        let n: usize = shape.iter().product();
        vars.push(var(&p[at..at + n], shape));
        at += n;
    }
    assert_eq!(at, p.len());
    let weights = |y: &Tensor| Tensor::from_vec(wide(g), y.shape(), &Device::Cpu).unwrap();
    let score = |tensors: &[Tensor]| {
        let y = f(tensors).unwrap();
        let score = (&y * weights(&y)).unwrap().sum_all().unwrap();
        (y, score)
    };
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let (y, total) = score(&tensors);
    let gradients = total.backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let grads: Vec<Vec<f64>> = vars.iter().map(|v| flat(gradients.get(v).unwrap())).collect();

    // The gradients themselves by a central difference along one direction through all values.
    let directions: Vec<Vec<f64>> =
        tensors.iter().map(|v| (0..v.elem_count()).map(|i| (i * 7919 % 1013) as f64 / 506.0 - 1.0).collect()).collect();
    let moved = |by: f64| {
        let shift = |(v, d): (&Tensor, &Vec<f64>)| {
            (v.detach() + (Tensor::from_slice(d, v.shape(), &Device::Cpu).unwrap() * by).unwrap()).unwrap()
        };
        let shifted: Vec<Tensor> = tensors.iter().zip(&directions).map(shift).collect();
        score(&shifted).1.to_scalar::<f64>().unwrap()
    };
    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
    let dot: f64 = grads.iter().flatten().zip(directions.iter().flatten()).map(|(g, d)| g * d).sum();
    assert!((slope - dot).abs() <= 1e-5 * (1.0 + slope.abs()), "a difference gives {slope}, the gradients {dot}");
    [flat(&y), grads[0].clone(), grads[1..].concat()]
}

/// Compares a layer in f32 and bf16 with f64, and in f32 with its twin on the host if it has one.
fn check(
    what: &str,
    layer: &dyn DeviceLayer,
    twin: Option<&dyn Layer>,
    shapes: &[Vec<usize>],
    x_shape: &[usize],
    outputs: usize,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let mut rng = StdRng::seed_from_u64(1);
    let count = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
    assert_eq!(layer.values(), count, "{what}");
    let [x, p, g] = [x_shape.iter().product(), count, outputs].map(|n| random(n, &mut rng));
    for (kind, bound) in [(Kind::F32, 3e-6), (Kind::Bf16, 2e-2)] {
        // What enters is rounded beforehand, so that only what the kernels do is compared.
        let rounded = |v: &[f32]| match kind {
            Kind::Bf16 => v.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
            _ => v.to_vec(),
        };
        let (x, g) = (rounded(&x), rounded(&g));
        let mut exact = exact(shapes, (x_shape, &x), &p, &g, &f);
        let all = passes(layer, kind, &x, &p, &g);
        if all.iter().any(|passes| passes[1].is_empty()) {
            exact[1].clear();
        }
        for passes in &all {
            for ((part, got), exact) in
                ["output", "input's gradient", "parameters' gradient"].iter().zip(passes).zip(&exact)
            {
                let error = relative(got, exact);
                assert!(error <= bound, "{what}, {kind:?}: {part}: relative error {error:.1e}");
            }
            // Each parameter by itself, so that a small one does not hide behind a large one.
            let mut at = 0;
            for (index, shape) in shapes.iter().enumerate() {
                let span = at..at + shape.iter().product::<usize>();
                let error = relative(&passes[2][span.clone()], &exact[2][span.clone()]);
                assert!(
                    error <= 2.5 * bound,
                    "{what}, {kind:?}: gradient of parameter {index}: relative error {error:.1e}"
                );
                at = span.end;
            }
            if let (Some(twin), Kind::F32) = (twin, kind) {
                let (out, kept) = twin.forward(&x, &p, true);
                let (x_grad, p_grad) = twin.backward(&x, &p, &g, &kept);
                for (got, host) in passes.iter().zip([out, x_grad, p_grad]) {
                    let error = relative(got, &wide(&host));
                    assert!(error <= 5e-6, "{what}: relative error {error:.1e} from the host's layer");
                }
            }
        }
    }
}

fn block_shapes(d: usize) -> Vec<Vec<usize>> {
    vec![
        vec![d, 1, 7, 7],
        vec![d],
        vec![d],
        vec![d],
        vec![4 * d, d],
        vec![4 * d],
        vec![1, 1, 1, 4 * d],
        vec![1, 1, 1, 4 * d],
        vec![d, 4 * d],
        vec![d],
    ]
}

#[test]
fn blocks() {
    let mut rng = StdRng::seed_from_u64(2);
    // Runs of 7, 4, 2 and 1 rows; channels that leave rests of a warp and need several.
    let mut grids = vec![(Grid::full(7, 2), 9), (Grid::full(8, 2), 3), (Grid::full(6, 1), 40), (Grid::full(3, 3), 34)];
    for cells in [1, 2, 4, 8] {
        grids.push((Grid::masked(&Mask::random(3, 3, 0.6, &mut rng), cells), 5));
    }
    for (grid, d) in grids {
        for grn in [Grn::Sample, Grn::Batch] {
            let n = grid.batch * grid.rows;
            let layer = Block { grid: grid.clone(), channels: d, grn, ln_eps: EPS, grn_eps: EPS, rounding: None };
            let what = format!("block of {d} channels, side {}, {} rows, {grn:?}", grid.side, grid.rows);
            check(&what, &layer, Some(&layer), &block_shapes(d), &[n, d], n * d, |t| {
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
                elementary::block(&t[0], &params, &grid, grn, EPS, EPS)
            });
        }
    }
}

/// Every geometry of the stem and the three steps between the stages.
#[test]
fn stems_and_downsampling() {
    let mut rng = StdRng::seed_from_u64(3);
    for (tile_size, patch_size, stem_padding, masked) in [
        (24, 8, StemPadding::Same, true),
        (24, 8, StemPadding::None, false),
        (32, 16, StemPadding::Same, true),
        (48, 16, StemPadding::None, false),
        (64, 32, StemPadding::None, false),
    ] {
        let a = Architecture { tile_size, patch_size, stem_padding, ..Architecture::named("yocto", 32, 16).unwrap() };
        let side = usize::from(tile_size) / usize::from(patch_size);
        let mask = masked.then(|| Mask::random(2, side, 0.5, &mut rng));
        let geometry = Geometry::new(&a, 2, mask.as_ref()).unwrap();
        let (bands, d, k, size) = (3, 5, geometry.stride, usize::from(tile_size));
        let what = format!("{size}/{patch_size} {stem_padding:?}");
        let layer = Stem { geometry: geometry.clone(), bands, channels: d, ln_eps: EPS, rounding: None };
        let shapes: Vec<Vec<usize>> =
            vec![vec![d, bands, 3, 3], vec![d], vec![d], vec![d], vec![d, 1, k, k], vec![d], vec![d], vec![d]];
        let rows = |stage: usize| geometry.grids[stage].batch * geometry.grids[stage].rows;
        let x_shape = [2, bands, size, size];
        check(&format!("stem {what}"), &layer, Some(&layer), &shapes, &x_shape, rows(0) * d, |t| {
            let p = |i: usize| t[i].clone();
            let params = StemParams {
                conv_weight: p(1),
                conv_bias: p(2),
                norm1_weight: p(3),
                norm1_bias: p(4),
                stem_weight: p(5),
                stem_bias: p(6),
                norm2_weight: p(7),
                norm2_bias: p(8),
            };
            elementary::stem(&t[0], &params, &geometry, EPS)
        });
        for stage in 0..3 {
            let (before, after) = (6, 35);
            let layer = Downsample { geometry: geometry.clone(), stage, before, after, ln_eps: EPS, rounding: None };
            let shapes: Vec<Vec<usize>> = vec![vec![before], vec![before], vec![after, before, 2, 2], vec![after]];
            let x_shape = [rows(stage), before];
            let what = format!("downsampling {stage} {what}");
            check(&what, &layer, Some(&layer), &shapes, &x_shape, rows(stage + 1) * after, |t| {
                let p = |i: usize| t[i].clone();
                let params = DownsampleParams { norm_weight: p(1), norm_bias: p(2), weight: p(3), bias: p(4) };
                elementary::downsample(&t[0], &params, &geometry, stage, EPS)
            });
        }
    }
}

#[test]
fn linear_layers_and_layer_norm() {
    for (n, c, d) in [(1, 3, 2), (70, 24, 19), (700, 40, 7)] {
        let shapes: Vec<Vec<usize>> = vec![vec![d, c], vec![d]];
        let layer = Linear { inputs: c, outputs: d };
        check("linear", &layer, None, &shapes, &[n, c], n * d, |t| elementary::linear(&t[0], &t[1], &t[2]));
        let layer = LayerNorm { channels: c, eps: EPS };
        let shapes: Vec<Vec<usize>> = vec![vec![c], vec![c]];
        check("layer norm", &layer, None, &shapes, &[n, c], n * c, |t| {
            elementary::layer_norm(&t[0], &t[1], &t[2], EPS)
        });
    }
}

/// A loss in f64 by `f`, its value and the gradient times 0.7.
fn exact_loss(x: &[f32], shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<f64>, Vec<f64>) {
    let x = Var::from_tensor(&Tensor::from_vec(wide(x), shape, &Device::Cpu).unwrap()).unwrap();
    let loss = (f(x.as_tensor()).unwrap() * 0.7).unwrap();
    let gradient = loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (vec![loss.to_scalar::<f64>().unwrap() / 0.7], gradient)
}

#[test]
fn losses_and_picked_rows() {
    machines().iter().for_each(|machine| losses_and_picked_rows_on(&**machine));
}

fn losses_and_picked_rows_on(machine: &dyn Bench) {
    let mut rng = StdRng::seed_from_u64(4);
    for (kind, bound) in [(Kind::F32, 1e-6), (Kind::Bf16, 4e-3)] {
        let l = Launcher::new(machine, kind);
        let (rows, classes) = (700, 37);
        let x = machine.put(kind, &random(rows * classes, &mut rng));
        let values = machine.read(x.view());
        let g = machine.put(Kind::F32, &[0.7]);
        let close = |what: &str, got: Vec<f32>, exact: &[f64]| {
            let error = relative(&got, exact);
            assert!(error <= bound, "{what}, {kind:?}: relative error {error:.1e}");
        };

        let [truth, weights] = [0, 1].map(|_| random(rows * classes, &mut rng));
        let tensor = |v: &[f32]| Tensor::from_vec(wide(v), (rows, classes), &Device::Cpu).unwrap();
        let (loss, gradient) = exact_loss(&values, &[rows, classes], |x| {
            elementary::weighted_squares(x, &tensor(&truth), &tensor(&weights))
        });
        let [truth, weights] = [truth, weights].map(|v| machine.put(Kind::F32, &v));
        let got = losses::weighted_squares(&l, x.view(), truth.view(), weights.view()).unwrap();
        // The terms have both signs, so the sum is far smaller than they.
        let error = (f64::from(machine.read(got.view())[0]) - loss[0]).abs();
        assert!(error <= 1e-3, "weighted squares: {error:.1e}");
        let got = losses::weighted_squares_backward(&l, x.view(), truth.view(), weights.view(), g.view()).unwrap();
        close("weighted squares, gradient", machine.read(got.view()), &gradient);

        let labels: Vec<u32> = (0..rows as u32).map(|i| if i % 5 == 0 { u32::MAX } else { i % 37 }).collect();
        let known = labels.iter().filter(|l| **l < 37).count();
        let (loss, gradient) = exact_loss(&values, &[rows, classes], |x| elementary::cross_entropy(x, &labels));
        let labels = l.upload(&labels).unwrap();
        let got = losses::cross_entropy(&l, x.view(), labels.view(), known).unwrap();
        close("cross entropy", machine.read(got.view()), &loss);
        let got = losses::cross_entropy_backward(&l, x.view(), labels.view(), known, g.view()).unwrap();
        close("cross entropy, gradient", machine.read(got.view()), &gradient);

        // Every third row is the fill.
        let index: Vec<u32> = (0..900).map(|i| if i % 3 == 0 { u32::MAX } else { i * 7 % 700 }).collect();
        let fill = machine.put(Kind::F32, &random(classes, &mut rng));
        let places = l.upload(&index).unwrap();
        let got = losses::pick(&l, x.view(), places.view(), Some(fill.view()), classes).unwrap();
        let row =
            |i: &u32| values.get(*i as usize * classes..).map_or(machine.read(fill.view()), |v| v[..classes].to_vec());
        let picked: Vec<f32> = index.iter().flat_map(row).collect();
        close("picked rows", machine.read(got.view()), &wide(&picked));
        let sums = losses::fill_sums(&l, got.view(), places.view(), classes).unwrap();
        let exact: Vec<f64> = wide(&machine.read(got.view())[..classes]).iter().map(|v| v * 300.0).collect();
        close("sums of filled rows", machine.read(sums.view()), &exact);
    }
}

/// AdamW's kernels against its steps on the host.
#[test]
fn adamw() {
    machines().iter().for_each(|machine| adamw_on(&**machine));
}

fn adamw_on(machine: &dyn Bench) {
    let mut rng = StdRng::seed_from_u64(5);
    let (n, config) = (1000, AdamWConfig::default());
    let start = random(n, &mut rng);
    let mut params = Params::default();
    params.insert("w", Tensor::from_slice(&start, (n / 10, 10), &Device::Cpu).unwrap()).unwrap();
    let mut optimiser = AdamW::new(&params, config).unwrap();
    let l = Launcher::new(machine, Kind::F32);
    let (p, mean, square) =
        (machine.put(Kind::F32, &start), machine.put(Kind::F32, &vec![0.0; n]), machine.put(Kind::F32, &vec![0.0; n]));
    for step in 1..=3 {
        let g = random(n, &mut rng);
        let tensor = Tensor::from_slice(&g, (n / 10, 10), &Device::Cpu).unwrap();
        let loss = (params.get("w") * tensor).unwrap().sum_all().unwrap();
        optimiser.backward_step(&loss, 1e-2).unwrap();
        let g = machine.put(Kind::F32, &g);
        for (moment, keep, squared) in [(&mean, config.beta1, false), (&square, config.beta2, true)] {
            let numbers = [(keep as f32).into(), ((1.0 - keep) as f32).into()];
            let arguments = [&[moment.into(), (&g).into()], &numbers[..], &[squared.into(), n.into()]].concat();
            l.plain("adamw_moment", n, &arguments).unwrap();
        }
        let [rate, root] = [config.beta1, config.beta2].map(|b| 1.0 - b.powi(step));
        let numbers = [1.0 - 1e-2 * config.weight_decay, 1e-2 / rate, 1.0 / root.sqrt(), config.eps];
        let numbers = numbers.map(|v| super::Arg::from(v as f32));
        let arguments = [&[(&p).into(), (&mean).into(), (&square).into()], &numbers[..], &[n.into()]].concat();
        l.plain("adamw_update", n, &arguments).unwrap();
    }
    let host: Vec<f64> = params.get("w").to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let error = relative(&machine.read(p.view()), &host);
    assert!(error <= 1e-6, "{error:.1e}");
}

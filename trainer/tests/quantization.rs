//! The rounded encoder against one that is put together from candle's own operations in f64, values and gradients.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use nadir::model::{Architecture, StemPadding};
use nadir_formats::expected_shapes;
use nadir_trainer::ops::grid::Geometry;
use nadir_trainer::ops::rounding::{BlockRounding, Rounding, Steps};
use nadir_trainer::ops::{self, BlockParams, DownsampleParams, PatchifyParams, StemParams, elementary};
use nadir_trainer::params::Params;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const EPS: f32 = 1e-6;

/// Uniform numbers within `size` of 0.
fn random(shape: &[usize], size: f32, rng: &mut StdRng) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-size..size)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Rounds `[rows, channels]`; backwards a clamp.
fn fake(x: &Tensor, steps: &Steps) -> Result<Tensor> {
    let sizes: Vec<f64> = steps.sizes.iter().map(|s| f64::from(*s)).collect();
    let sizes = Tensor::from_vec(sizes, (1, steps.sizes.len()), x.device())?;
    let [low, high] = steps.range.map(f64::from);
    let integers = x.broadcast_div(&sizes)?;
    let clamped = integers.clamp(low - 0.5, high + 0.5)?;
    let rounded = integers.clamp(low, high)?.round()?;
    (&clamped + (rounded - clamped.detach())?.detach())?.broadcast_mul(&sizes)
}

fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(weight)?.broadcast_add(bias)
}

/// LayerNorm without weight and bias.
fn normed(x: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones(x.dim(1)?, x.dtype(), x.device())?;
    elementary::layer_norm(x, &ones, &ones.zeros_like()?, EPS)
}

fn block(x: &Tensor, p: &BlockParams, geometry: &Geometry, stage: usize, r: &BlockRounding) -> Result<Tensor> {
    let grid = &geometry.grids[stage];
    let y = normed(&elementary::depthwise(x, &p.dw_weight, &p.dw_bias, grid)?)?;
    let y = affine(&fake(&y, &r.normalised)?, &p.norm_weight, &p.norm_bias)?;
    let y = fake(&elementary::linear(&y, &p.pw1_weight, &p.pw1_bias)?, &r.hidden)?.gelu_erf()?;
    let y = elementary::grn(&y, &p.grn_gamma, &p.grn_beta, grid.batch, EPS)?;
    x + elementary::linear(&fake(&y, &r.projected)?, &p.pw2_weight, &p.pw2_bias)?
}

/// A 2x2 convolution over the rows of `geometry`.
fn downsample(x: &Tensor, p: &DownsampleParams, geometry: &Geometry, stage: usize, steps: &Steps) -> Result<Tensor> {
    let (fine, coarse) = (geometry.grids[stage].side, geometry.grids[stage + 1].side);
    let (batch, channels) = (geometry.grids[0].batch, x.dim(1)?);
    let y = affine(&fake(&normed(x)?, steps)?, &p.norm_weight, &p.norm_bias)?;
    let y = y.reshape((batch, fine, fine, channels))?.permute((0, 3, 1, 2))?.contiguous()?;
    let y = y.conv2d(&p.weight, 0, 2, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    y.reshape((batch * coarse * coarse, ()))?.broadcast_add(&p.bias)
}

fn stem(x: &Tensor, p: &StemParams, stride: usize, steps: &Steps) -> Result<Tensor> {
    let y = x.conv2d(&p.conv_weight, 1, 1, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let (batch, side, _, channels) = y.dims4()?;
    let y = y.reshape((batch * side * side, channels))?.broadcast_add(&p.conv_bias)?;
    let y = elementary::layer_norm(&y, &p.norm1_weight, &p.norm1_bias, EPS)?;
    let y = fake(&y, steps)?.gelu_erf()?;
    let y = y.reshape((batch, side, side, channels))?.permute((0, 3, 1, 2))?.contiguous()?;
    let y = y.conv2d(&p.stem_weight, 0, stride, 1, channels)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = y.reshape(((), channels))?.broadcast_add(&p.stem_bias)?;
    elementary::layer_norm(&y, &p.norm2_weight, &p.norm2_bias, EPS)
}

fn patchify(x: &Tensor, p: &PatchifyParams, stride: usize) -> Result<Tensor> {
    let y = x.conv2d(&p.weight, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = y.reshape(((), p.bias.dim(0)?))?.broadcast_add(&p.bias)?;
    elementary::layer_norm(&y, &p.norm_weight, &p.norm_bias, EPS)
}

fn encode(x: &Tensor, params: &Params, arch: &Architecture, geometry: &Geometry, r: &Rounding) -> Result<Tensor> {
    let mut map = match &r.stem {
        Some(steps) => stem(x, &StemParams::of(params), arch.stem_stride(), steps)?,
        None => patchify(x, &PatchifyParams::of(params), arch.stem_stride())?,
    };
    for stage in 0..4 {
        if stage > 0 {
            let own = DownsampleParams::of(params, stage - 1);
            map = downsample(&map, &own, geometry, stage - 1, &r.downsamples[stage - 1])?;
        }
        for (at, rounding) in r.blocks[stage].iter().enumerate() {
            map = block(&map, &BlockParams::of(params, &format!("stages.{stage}.{at}")), geometry, stage, rounding)?;
        }
    }
    Ok(map)
}

/// |a - b| / |b|.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|t| t.to_dtype(DType::F64).unwrap());
    let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm((&a - &b).unwrap()) / norm(b)
}

/// Steps so that values up to `range` are kept, `finer` times finer than int8.
fn rounding(arch: &Architecture, range: f32, finer: f32) -> Rounding {
    let scaled = |mut steps: Steps| {
        steps.sizes.iter_mut().for_each(|size| *size *= range / 127.0 / finer);
        steps.range = steps.range.map(|end| end * finer);
        steps
    };
    // Each channel its own step.
    let own = |channels| scaled(Steps::int8((0..channels).map(|i| 1.0 + 0.1 * (i % 3) as f32).collect()));
    let index = |channels| scaled(Steps::index(1.0, -40, channels));
    let blocks = (0..4).map(|stage| {
        let d = arch.dim(stage);
        let block = BlockRounding { normalised: own(d), hidden: index(4 * d), projected: own(4 * d) };
        vec![block; usize::from(arch.depths[stage])]
    });
    Rounding {
        stem: (!arch.is_patchify()).then(|| index(arch.dim(0))),
        downsamples: (0..3).map(|stage| own(arch.dim(stage))).collect(),
        blocks: blocks.collect(),
    }
}

/// Rounded to eight bits, and so finely that only the cut at the ends is left; without any value out of range, and with many.
#[test]
fn rounding_follows_f64() {
    for stem_padding in [StemPadding::Same, StemPadding::Patchify] {
        follow(stem_padding);
    }
}

fn follow(stem_padding: StemPadding) {
    let mut rng = StdRng::seed_from_u64(3);
    let arch = Architecture {
        dims: [6, 8, 10, 12],
        depths: [1, 1, 2, 1],
        ln_eps: EPS,
        grn_eps: EPS,
        stem_padding,
        ..Architecture::named("yocto", 32, 16).unwrap()
    };
    let geometry = Geometry::new(&arch, 2, None).unwrap();
    let mut shapes = expected_shapes(&arch, 3);
    shapes.retain(|name, _| !name.starts_with("norm."));
    let x = random(&[2, 3, 32, 32], 1.0, &mut rng);
    let values: Vec<Tensor> = shapes.values().map(|shape| random(shape, 0.5, &mut rng)).collect();
    let run = |dtype: DType, rounding: &Rounding| {
        let vars: Vec<Var> = values.iter().map(|v| Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap()).collect();
        let named = shapes.keys().cloned().zip(vars.iter().map(|v| v.as_tensor().clone()));
        let params = Params::from_tensors(named.collect::<BTreeMap<_, _>>());
        let x = x.to_dtype(dtype).unwrap();
        let y = match dtype {
            DType::F32 => ops::encode(&x, &params, &arch, &geometry, Some(rounding)),
            _ => encode(&x, &params, &arch, &geometry, rounding),
        };
        let y = y.unwrap();
        // A number that depends on every output in its own way.
        let weights: Vec<f64> = (0..y.elem_count()).map(|i| (i * 7919 % 1013) as f64 / 506.0 - 1.0).collect();
        let weights = Tensor::from_vec(weights, y.shape(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let gradients = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        (y, vars.iter().map(|v| gradients.get(v).unwrap().clone()).collect::<Vec<_>>())
    };
    // A value beside a tie may go to the other side in f32, and moves what follows by a step.
    for (range, finer, values_within, gradients_within) in
        [(6.0, 1.0, 5e-3, 3e-2), (1.0, 1.0, 5e-3, 3e-2), (6.0, 8192.0, 2e-5, 1e-4), (1.0, 8192.0, 2e-5, 1e-4)]
    {
        let rounding = rounding(&arch, range, finer);
        let ((found, of_found), (exact, of_exact)) = (run(DType::F32, &rounding), run(DType::F64, &rounding));
        let error = relative(&found, &exact);
        assert!(error <= values_within, "range {range}, {finer} times finer: error {error}");
        for ((name, found), exact) in shapes.keys().zip(&of_found).zip(&of_exact) {
            let error = relative(found, exact);
            // A LayerNorm before a matrix product is folded into it, and its own weight and bias are 1 and 0 while rounding.
            let of_downsampling = name.starts_with("downsample") && name.split('.').nth(2) == Some("0");
            let folded = name.contains(".norm.") || of_downsampling;
            assert!(folded || error <= gradients_within, "range {range}, {finer} times finer, {name}: error {error}");
        }
    }
}

#[test]
fn another_type_is_refused() {
    let arch = Architecture { dims: [4; 4], depths: [1; 4], ..Architecture::named("yocto", 16, 8).unwrap() };
    let geometry = Geometry::new(&arch, 1, None).unwrap();
    let named = expected_shapes(&arch, 1).into_iter();
    let named = named.map(|(name, shape)| (name, Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap())).collect();
    let x = Tensor::zeros((1, 1, 16, 16), DType::F64, &Device::Cpu).unwrap();
    let error = ops::encode(&x, &Params::from_tensors(named), &arch, &geometry, Some(&rounding(&arch, 1.0, 1.0)));
    assert!(error.unwrap_err().to_string().contains("on the CPU in F32"));
}

//! Contrast beside MP-MAE: two views of a tile, each turned, hidden in part and in a light of its own, must be told from all other views
//! of a batch.
//!
//! MP-MAE alone lets an embedding tell apart what land cover does not depend on: light, haze, the direction of fields. The
//! normalised, temperature-scaled cross entropy of SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual
//! Representations", ICML 2020) takes that out. Masks are its crops: what both views share is what can be told from any 40 % of a tile.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor};
use rand::RngExt;

use crate::data::{AS_IS, Stream, Symmetry, generator, source};
use crate::mpmae::Target;
use crate::ops;
use crate::ops::grid::Grid;
use crate::params::Params;

/// Widths of the two layers between the encoder and the space in which views are compared; both are used while training only.
const HIDDEN: usize = 512;
const WIDTH: usize = 128;
/// Below any similarity by so much that its exponential is 0 at any temperature that a model can be trained at.
const NEVER: f32 = -1e4;

/// How views are told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// Weight of the loss beside the tasks' total.
    pub weight: f64,
    /// What similarities are divided by; the smaller, the more the nearest other tiles count.
    pub temperature: f64,
}

/// Names and shapes of the parameters, for an encoder of `d` dimensions.
pub(crate) fn shapes(d: usize) -> BTreeMap<String, Vec<usize>> {
    let layers = [("norm", vec![d]), ("0", vec![HIDDEN, d]), ("1", vec![WIDTH, HIDDEN])];
    let pair = |(name, weight): (&str, Vec<usize>)| {
        [(format!("contrast.{name}.bias"), vec![weight[0]]), (format!("contrast.{name}.weight"), weight)]
    };
    layers.into_iter().flat_map(pair).collect()
}

/// The mean over all views of the cross entropy of finding a tile's other view, from the encoder's visible rows; a batch holds the first
/// view of every tile, then the second of every tile.
///
/// # Errors
/// If the number of views is not even, or there are those of one tile only: nothing is to be told apart then.
pub(crate) fn loss(rows: &Tensor, grid: &Grid, params: &Params, temperature: f64, ln_eps: f32) -> Result<Tensor> {
    let (views, d) = (grid.batch, rows.dim(1)?);
    if !views.is_multiple_of(2) || views < 4 {
        candle_core::bail!("{views} views are not two of each of at least two tiles");
    }
    let get = |name: &str| params.get(&format!("contrast.{name}"));
    let pooled = rows.to_dtype(candle_core::DType::F32)?.reshape((views, grid.rows, d))?.mean(1)?;
    let y = ops::layer_norm(&pooled, get("norm.weight"), get("norm.bias"), ln_eps)?;
    let y = ops::linear(&y, get("0.weight"), get("0.bias"))?.gelu_erf()?;
    let y = ops::linear(&y, get("1.weight"), get("1.bias"))?;
    let unit = y.broadcast_div(&(y.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)?;
    // A view is not to be found itself.
    let own = (0..views * views).map(|i| if i / views == i % views { NEVER } else { 0.0 }).collect();
    let own = Tensor::from_vec::<_, f32>(own, (views, views), rows.device())?;
    let logits = ((unit.matmul(&unit.t()?)? + own)? / temperature)?;
    let other: Vec<u32> = (0..views).map(|i| ((i + views / 2) % views) as u32).collect();
    ops::cross_entropy(&logits, &other)
}

/// How views are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Views {
    /// Whether the second view is under another random symmetry than the first.
    pub turn: bool,
    /// Light of a view: a normalised value `v` becomes `v exp(a) + b`, with `a` and `b` uniform within plus and minus this, drawn anew for
    /// each view, and half as much on top for each band.
    pub jitter: f32,
    /// Seed of both.
    pub seed: u64,
}

impl Views {
    /// Two views of every tile of batch `number`: inputs `[batch, bands, side, side]` and targets come out twice as long, the first views before
    /// the second. Pixel targets turn with the tile; with `predicted` the first target is the input itself, and takes its light. Missing
    /// values (0 of the input, NaN and -1 of targets) stay missing.
    pub fn of(&self, x: &Tensor, targets: &[Target], predicted: bool, number: u64) -> Result<(Tensor, Vec<Target>)> {
        let (batch, bands, side, _) = x.dims4()?;
        let mut random = generator(self.seed, Stream::Views, number);
        let turns: Vec<Symmetry> =
            (0..batch).map(|_| if self.turn { random.random_range(0..8) } else { AS_IS }).collect();
        let j = self.jitter;
        let mut draw = || if j > 0.0 { random.random_range(-j..j) } else { 0.0 };
        let mut light = Vec::with_capacity(2 * batch * bands);
        for _ in 0..2 * batch {
            let whole = [draw(), draw()];
            for _ in 0..bands {
                let [gain, offset] = [whole[0] + 0.5 * draw(), whole[1] + 0.5 * draw()];
                light.push((gain.exp(), offset));
            }
        }
        let relight = |values: &mut [f32], missing: f32| {
            for (plane, (gain, offset)) in values.chunks_exact_mut(side * side).zip(&light) {
                plane.iter_mut().filter(|v| **v != missing).for_each(|v| *v = v.mul_add(*gain, *offset));
            }
        };
        let mut input = doubled(&flat(x)?, side, &turns);
        relight(&mut input, 0.0);
        let input = Tensor::from_vec(input, (2 * batch, bands, side, side), x.device())?;
        let twice = |at: usize, target: &Target| -> Result<Target> {
            let (Target::Values(tensor) | Target::Classes(tensor)) = target;
            let mut shape = tensor.dims().to_vec();
            shape[0] = 2 * batch;
            let per_pixel = shape.len() > 2;
            // Pixels, or patches.
            let side = shape[shape.len() - 1];
            Ok(match target {
                Target::Values(tensor) if per_pixel => {
                    let mut values = doubled(&flat(tensor)?, side, &turns);
                    if predicted && at == 0 {
                        // NaN is unlike itself, so it is passed over by its own arithmetic.
                        relight(&mut values, f32::NAN);
                    }
                    Target::Values(Tensor::from_vec(values, shape, &Device::Cpu)?)
                }
                Target::Classes(tensor) if per_pixel => {
                    let classes: Vec<i64> = tensor.flatten_all()?.to_vec1()?;
                    Target::Classes(Tensor::from_vec(doubled(&classes, side, &turns), shape, &Device::Cpu)?)
                }
                Target::Values(tensor) => Target::Values(Tensor::cat(&[tensor, tensor], 0)?),
                Target::Classes(tensor) => Target::Classes(Tensor::cat(&[tensor, tensor], 0)?),
            })
        };
        let targets = targets.iter().enumerate().map(|(at, target)| twice(at, target)).collect::<Result<_>>()?;
        Ok((input, targets))
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// The maps `[batch, .., side, side]` as they are, and then each turned.
fn doubled<T: Copy>(values: &[T], side: usize, turns: &[Symmetry]) -> Vec<T> {
    let mut out = Vec::with_capacity(2 * values.len());
    out.extend_from_slice(values);
    for (tile, turn) in values.chunks_exact(values.len() / turns.len()).zip(turns) {
        for plane in tile.chunks_exact(side * side) {
            out.extend((0..side * side).map(|at| plane[source(*turn, side, at / side, at % side)]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Init, fresh};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn vec(tensor: &Tensor) -> Vec<f32> {
        flat(tensor).unwrap()
    }

    #[test]
    fn the_loss_is_that_of_its_definition() {
        let (views, rows, d) = (6, 2, 8);
        let params = fresh(&shapes(d), Init::Small, |_| false, &mut StdRng::seed_from_u64(1));
        let params = Params::from_arrays(&params, &Device::Cpu).unwrap();
        let x: Vec<f32> = (0..views * rows * d).map(|i| (i * 7919 % 101) as f32 / 50.0 - 1.0).collect();
        let x = Tensor::from_vec(x, (views * rows, d), &Device::Cpu).unwrap();
        let grid = Grid::full(1, views);
        assert_eq!(grid.rows, 1);
        let pooled = x.reshape((views, rows, d)).unwrap().mean(1).unwrap();
        let is = vec(&loss(&pooled, &grid, &params, 0.2, 1e-6).unwrap())[0];
        // The same in f64, step by step.
        let w = |name: &str| -> Vec<f64> {
            vec(params.get(&format!("contrast.{name}"))).iter().map(|v| f64::from(*v)).collect()
        };
        let layer = |x: &[f64], name: &str| -> Vec<f64> {
            let (weight, bias) = (w(&format!("{name}.weight")), w(&format!("{name}.bias")));
            let row = |(o, b): (usize, &f64)| b + (0..x.len()).map(|i| weight[o * x.len() + i] * x[i]).sum::<f64>();
            bias.iter().enumerate().map(row).collect()
        };
        let unit: Vec<Vec<f64>> = vec(&pooled)
            .chunks(d)
            .map(|x| {
                let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                let mean = x.iter().sum::<f64>() / d as f64;
                let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
                let x: Vec<f64> = x.iter().map(|v| (v - mean) / (var + 1e-6).sqrt()).collect();
                let x: Vec<f64> = layer(&x, "0").iter().map(|v| 0.5 * v * (1.0 + libm::erf(v / 2f64.sqrt()))).collect();
                let y = layer(&x, "1");
                let norm = y.iter().map(|v| v * v).sum::<f64>().sqrt();
                y.iter().map(|v| v / norm).collect()
            })
            .collect();
        let similarity = |a: usize, b: usize| unit[a].iter().zip(&unit[b]).map(|(a, b)| a * b).sum::<f64>() / 0.2;
        let term = |i: usize| {
            let all: f64 = (0..views).filter(|j| *j != i).map(|j| similarity(i, j).exp()).sum();
            all.ln() - similarity(i, (i + 3) % views)
        };
        let should = (0..views).map(term).sum::<f64>() / views as f64;
        assert!((f64::from(is) - should).abs() < 1e-5, "{is} {should}");
        for views in [2, 5] {
            let few = pooled.narrow(0, 0, views).unwrap();
            assert!(loss(&few, &Grid::full(1, views), &params, 0.2, 1e-6).is_err());
        }
    }

    #[test]
    fn views_are_turned_relit_tiles_with_their_targets() {
        let (batch, bands, side) = (3, 2, 4);
        let n = batch * bands * side * side;
        let mut values: Vec<f32> = (1..=n).map(|i| i as f32).collect();
        values[5] = 0.0;
        let mut known = values.clone();
        known[5] = f32::NAN;
        let tensor = |v: Vec<f32>| Tensor::from_vec(v, (batch, bands, side, side), &Device::Cpu).unwrap();
        let classes: Vec<i64> = (0..(batch * side * side) as i64).collect();
        let targets = [
            Target::Values(tensor(known.clone())),
            Target::Values(tensor(values.clone())),
            Target::Classes(Tensor::from_vec(classes, (batch, side, side), &Device::Cpu).unwrap()),
            Target::Values(Tensor::from_vec(vec![1f32, 2., 3.], (batch, 1), &Device::Cpu).unwrap()),
        ];
        let views = Views { turn: true, jitter: 0.3, seed: 5 };
        let (x, doubled) = views.of(&tensor(values.clone()), &targets, true, 7).unwrap();
        assert_eq!(x.dims(), [2 * batch, bands, side, side]);
        let value = |at: usize| match &doubled[at] {
            Target::Values(t) => vec(t),
            Target::Classes(t) => {
                t.flatten_all().unwrap().to_vec1::<i64>().unwrap().iter().map(|c| *c as f32).collect()
            }
        };
        let (x, own, other, classes) = (vec(&x), value(0), value(1), value(2));
        assert_eq!(value(3), [1., 2., 3., 1., 2., 3.]);
        let plane = side * side;
        // A class tells from which pixel of its tile it came; all that is per pixel came along.
        for (at, class) in classes.iter().enumerate() {
            let (view, from) = (at / plane, *class as usize);
            assert_eq!(from / plane, view % batch, "view {view} is of another tile");
            for band in 0..bands {
                let here = (view * bands + band) * plane + at % plane;
                let there = (view % batch * bands + band) * plane + from % plane;
                assert_eq!(other[here], values[there], "a target that is not the input keeps its values");
                assert_eq!(own[here].is_nan(), there == 5);
                match there == 5 {
                    true => assert_eq!(x[here], 0.0),
                    false => assert_eq!(own[here], x[here]),
                }
            }
        }
        // One light a view and band: a line through all its values, another for each.
        let line = |x: &[f32], v: &[f32]| {
            let gain = (x[9] - x[0]) / (v[9] - v[0]);
            (gain, x[0] - gain * v[0])
        };
        let lines: Vec<_> = (0..2 * batch * bands).map(|p| line(&x[p * plane..], &other[p * plane..])).collect();
        for (p, (gain, offset)) in lines.iter().enumerate() {
            assert!((0.63..1.58).contains(gain) && offset.abs() < 0.5, "{lines:?}");
            assert!(lines[..p].iter().all(|l| (l.0 - gain).abs() > 1e-5), "{lines:?}");
        }
        assert_ne!(vec(&views.of(&tensor(values.clone()), &targets, true, 8).unwrap().0), x);
        let plain = Views { turn: false, jitter: 0.0, seed: 5 }.of(&tensor(values.clone()), &targets, true, 7).unwrap();
        assert_eq!(vec(&plain.0), [values.clone(), values].concat());
    }
}

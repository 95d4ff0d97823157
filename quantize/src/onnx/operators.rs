//! What each operator makes of its inputs.

use tract_onnx::pb::NodeProto;

use super::form::{Atom, Axis, Form, Statistic, Sum};
use super::layer::{Convolution, Kind};
use super::reader::{Misfit, Reader, attribute, int};

type Output = Result<(Form, Vec<Axis>), Misfit>;

const MAP: [Axis; 4] = [Axis::Batch, Axis::Channel, Axis::Row, Axis::Column];

fn words(axes: &[Axis]) -> String {
    let word = |axis: &Axis| match axis {
        Axis::Batch => "batch",
        Axis::Channel => "channels",
        Axis::Row => "rows",
        Axis::Column => "columns",
        Axis::One => "1",
    };
    format!("[{}]", axes.iter().map(word).collect::<Vec<_>>().join(", "))
}

/// The axes of the result of an operation value by value.
fn broadcast(a: &[Axis], b: &[Axis]) -> Result<Vec<Axis>, Misfit> {
    let (long, short) = if a.len() < b.len() { (b, a) } else { (a, b) };
    let mut axes = long.to_vec();
    for (to, from) in axes.iter_mut().rev().zip(short.iter().rev()) {
        match (*to, *from) {
            (x, y) if x == y || y == Axis::One => {}
            (Axis::One, y) => *to = y,
            _ => return Err(format!("its inputs have axes {} and {}", words(a), words(b))),
        }
    }
    Ok(axes)
}

impl Reader<'_> {
    pub(super) fn arithmetic(&mut self, node: &NodeProto) -> Output {
        match (self.is_constant(node, 0), self.is_constant(node, 1)) {
            (true, _) => self.with_constant(node, 1, 0),
            (_, true) => self.with_constant(node, 0, 1),
            _ => self.of_two(node),
        }
    }

    /// Input `at` is a value, input `constant` a constant.
    fn with_constant(&mut self, node: &NodeProto, at: usize, constant: usize) -> Output {
        let (form, axes) = self.value(node, at)?;
        let misfit = || format!("{} of {} and a constant", node.op_type, form.describe());
        let form = match (&form, node.op_type.as_str(), at) {
            (Form::Sum(sum), op, _) => {
                let by = self.coefficients(node, constant, &axes)?;
                let sum = sum.clone();
                let inverse: Vec<f64> = by.iter().map(|v| 1.0 / v).collect();
                let negative: Vec<f64> = by.iter().map(|v| -v).collect();
                let result = match (op, at) {
                    ("Add", _) => sum.shifted(&by),
                    ("Sub", 0) => sum.shifted(&negative),
                    ("Sub", _) => sum.scaled(&[-1.0]).and_then(|sum| sum.shifted(&by)),
                    ("Mul", _) => sum.scaled(&by),
                    ("Div", 0) if by.iter().all(|v| *v != 0.0) => sum.scaled(&inverse),
                    _ => None,
                };
                Form::Sum(result.ok_or_else(misfit)?)
            }
            (Form::Statistic(map, statistic), "Add", _) => {
                let eps = self.scalar(node, constant)?;
                match statistic {
                    Statistic::Variance => Form::Statistic(*map, Statistic::VarianceEps(eps)),
                    Statistic::MeanNorm => Form::Statistic(*map, Statistic::MeanNormEps(eps)),
                    _ => return Err(misfit()),
                }
            }
            (Form::Statistic(..), "Div", 1) if self.scalar(node, constant)? == 1.0 => {
                inverse(&form).ok_or_else(misfit)?
            }
            _ => return Err(misfit()),
        };
        Ok((form, axes))
    }

    fn of_two(&mut self, node: &NodeProto) -> Output {
        let ((a, a_axes), (b, b_axes)) = (self.value(node, 0)?, self.value(node, 1)?);
        let axes = broadcast(&a_axes, &b_axes)?;
        let misfit = || format!("{} of {} and {}", node.op_type, a.describe(), b.describe());
        use Statistic::*;
        let form = match (node.op_type.as_str(), &a, &b) {
            ("Add", Form::Sum(x), Form::Sum(y)) if x.map == y.map => Form::Sum(x.clone().plus(y).ok_or_else(misfit)?),
            ("Add", Form::Sum(_), Form::Sum(_)) => {
                let ((input, _), (other, _)) = (self.map(node, 0)?, self.map(node, 1)?);
                return Ok(self.layer_of(node, Kind::Residual { other }, input, axes));
            }
            ("Sub", Form::Sum(x), Form::Statistic(map, Mean)) if x.is_map() && x.map == *map => {
                Form::Statistic(*map, Centred)
            }
            ("Mul", Form::Sum(x), Form::Sum(y)) if x.map == y.map && x.is_map() && y.is_map() => {
                Form::Statistic(x.map, Square)
            }
            ("Mul", Form::Sum(x), Form::Sum(y)) => Form::Sum(x.times(y).ok_or_else(misfit)?),
            ("Mul", Form::Statistic(m, x), Form::Statistic(n, y)) if m == n => match (x, y) {
                (Centred, Centred) => Form::Statistic(*m, CentredSquare),
                (Centred, InverseDeviation(eps)) | (InverseDeviation(eps), Centred) => {
                    Form::Sum(Sum::of(*m, Atom::Normalised, *eps))
                }
                (Norm, InverseMeanNorm(eps)) | (InverseMeanNorm(eps), Norm) => {
                    Form::Sum(Sum::of(*m, Atom::Share, *eps))
                }
                _ => return Err(misfit()),
            },
            ("Div", Form::Statistic(m, Centred), Form::Statistic(n, Deviation(eps))) if m == n => {
                Form::Sum(Sum::of(*m, Atom::Normalised, *eps))
            }
            ("Div", Form::Statistic(m, Norm), Form::Statistic(n, MeanNormEps(eps))) if m == n => {
                Form::Sum(Sum::of(*m, Atom::Share, *eps))
            }
            _ => return Err(misfit()),
        };
        Ok((form, axes))
    }

    pub(super) fn function(&mut self, node: &NodeProto) -> Output {
        if node.op_type == "Gelu" {
            if attribute(node, "approximate").is_some_and(|a| a.s != b"none") {
                return Err(
                    "GELU by its approximation with tanh, expected the exact one (approximate = \"none\")".into()
                );
            }
            let (input, axes) = self.map(node, 0)?;
            return Ok(self.layer_of(node, Kind::Gelu, input, axes));
        }
        let (form, axes) = self.value(node, 0)?;
        let exponent = if node.op_type == "Pow" { self.scalar(node, 1)? } else { 0.0 };
        let misfit = || format!("{} of {}", node.op_type, form.describe());
        let form = match (node.op_type.as_str(), &form) {
            ("Pow", Form::Sum(sum)) if exponent == 2.0 && sum.is_map() => Form::Statistic(sum.map, Statistic::Square),
            ("Pow", Form::Statistic(map, Statistic::Centred)) if exponent == 2.0 => {
                Form::Statistic(*map, Statistic::CentredSquare)
            }
            ("Pow", _) if exponent == 0.5 => root(&form).ok_or_else(misfit)?,
            ("Pow", _) if exponent == -0.5 => root(&form).as_ref().and_then(inverse).ok_or_else(misfit)?,
            ("Sqrt", _) => root(&form).ok_or_else(misfit)?,
            ("Reciprocal", _) => inverse(&form).ok_or_else(misfit)?,
            ("Erf", Form::Sum(sum)) if sum.is_erf_argument() => Form::Sum(Sum::of(sum.map, Atom::Erf, 0.0)),
            ("Erf", Form::Sum(_)) => {
                return Err("its input is not x / sqrt 2, of which GELU takes the error function".into());
            }
            ("Pow", _) => return Err(format!("{} to the power of {exponent}", form.describe())),
            _ => return Err(misfit()),
        };
        Ok((form, axes))
    }

    pub(super) fn reduce(&mut self, node: &NodeProto) -> Output {
        let (form, axes) = self.value(node, 0)?;
        let given = match attribute(node, "axes") {
            Some(axes) => Some(axes.ints.clone()),
            None => node.input.get(1).filter(|name| !name.is_empty()).and_then(|name| self.facts.integers(name)),
        };
        let global = node.op_type == "GlobalAveragePool";
        let given = if global { vec![2, 3] } else { given.ok_or("its axes are not constants")? };
        let keep = global || int(node, "keepdims").unwrap_or(1) == 1;
        let mut left: Vec<Option<Axis>> = axes.iter().copied().map(Some).collect();
        let mut reduced = Vec::new();
        for axis in given {
            let at = usize::try_from(if axis < 0 { axis + axes.len() as i64 } else { axis }).ok();
            let label =
                at.and_then(|at| left.get_mut(at)).ok_or_else(|| format!("axis {axis} of {} axes", axes.len()))?;
            reduced.extend(label.filter(|label| *label != Axis::One));
            *label = keep.then_some(Axis::One);
        }
        let left = left.into_iter().flatten().collect();
        let over = |wanted: &[Axis]| reduced.len() == wanted.len() && wanted.iter().all(|axis| reduced.contains(axis));
        let (channels, positions) = (over(&[Axis::Channel]), over(&[Axis::Row, Axis::Column]));
        use Statistic::*;
        let statistic = match (node.op_type.as_str(), &form) {
            ("ReduceMean", Form::Statistic(map, CentredSquare)) if channels => Form::Statistic(*map, Variance),
            ("ReduceMean", Form::Statistic(map, Norm)) if channels => Form::Statistic(*map, MeanNorm),
            ("ReduceMean", Form::Sum(_)) if channels => Form::Statistic(self.map(node, 0)?.0, Mean),
            ("ReduceMean" | "GlobalAveragePool", Form::Sum(_)) if positions => {
                let (input, _) = self.map(node, 0)?;
                return Ok(self.layer_of(node, Kind::Pool, input, left));
            }
            ("ReduceSum", Form::Statistic(map, Square)) if positions => Form::Statistic(*map, Energy),
            ("ReduceSumSquare", Form::Sum(_)) if positions => Form::Statistic(self.map(node, 0)?.0, Energy),
            ("ReduceL2", Form::Sum(_)) if positions => Form::Statistic(self.map(node, 0)?.0, Norm),
            _ => return Err(format!("{} of {} over {}", node.op_type, form.describe(), words(&reduced))),
        };
        Ok((statistic, left))
    }

    pub(super) fn layer_normalization(&mut self, node: &NodeProto) -> Output {
        let (input, axes) = self.map(node, 0)?;
        let axis = int(node, "axis").unwrap_or(-1);
        let last = axis == -1 || axis + 1 == axes.len() as i64;
        if !last || axes.last() != Some(&Axis::Channel) {
            return Err(format!("axis {axis} of {}, expected the channels, and them last", words(&axes)));
        }
        let eps = attribute(node, "epsilon").map_or(1e-5, |a| f64::from(a.f));
        let weight = self.coefficients(node, 1, &axes)?;
        let bias = if node.input.len() > 2 { self.coefficients(node, 2, &axes)? } else { vec![0.0] };
        Ok(self.layer_of(node, Kind::LayerNorm { weight, bias, eps }, input, axes))
    }

    pub(super) fn convolution(&mut self, node: &NodeProto) -> Output {
        let (input, axes) = self.map(node, 0)?;
        if axes != MAP {
            return Err(format!("its input has axes {}, expected {}", words(&axes), words(&MAP)));
        }
        let (weight, shape) = self.constant(node, 1)?;
        let [outputs, inputs, kernel, width] = shape[..] else {
            return Err(format!("its weight has shape {shape:?}, expected 4 axes"));
        };
        let ints = |name: &str, n: usize, otherwise: i64| match attribute(node, name) {
            Some(a) if a.ints.len() == n && a.ints.iter().all(|v| *v == a.ints[0]) => {
                usize::try_from(a.ints[0]).map_err(|_| format!("{name} {:?}", a.ints))
            }
            Some(a) => Err(format!("{name} {:?}, expected {n} equal ones", a.ints)),
            None => Ok(otherwise as usize),
        };
        let (stride, padding, dilation) = (ints("strides", 2, 1)?, ints("pads", 4, 0)?, ints("dilations", 2, 1)?);
        let auto = attribute(node, "auto_pad").map_or(&b"NOTSET"[..], |a| &a.s);
        if kernel != width || dilation != 1 || !matches!(auto, b"NOTSET" | b"VALID" | b"") {
            let auto = String::from_utf8_lossy(auto);
            return Err(format!(
                "kernel {kernel}x{width}, dilation {dilation}, auto_pad {auto}: expected a square kernel, dilation 1 and explicit padding"
            ));
        }
        let groups = usize::try_from(int(node, "group").unwrap_or(1)).unwrap_or(0);
        let bias =
            if node.input.get(2).is_some_and(|name| !name.is_empty()) { Some(self.constant(node, 2)?.0) } else { None };
        let layer = Convolution { weight, outputs, inputs, kernel, stride, padding, groups, bias };
        Ok(self.layer_of(node, Kind::Convolution(layer), input, axes))
    }

    /// A pointwise layer; after the embedding, a classifier.
    pub(super) fn matrix_product(&mut self, node: &NodeProto) -> Output {
        let (input, axes) = self.map(node, 0)?;
        let layer = &self.layers[input];
        if matches!(layer.kind, Kind::LayerNorm { .. }) && matches!(self.layers[layer.input].kind, Kind::Pool) {
            return Ok((Form::Beyond, axes));
        }
        let (weight, shape) = self.constant(node, 1)?;
        let [rows, columns] = shape[..] else {
            return Err(format!("its weight has shape {shape:?}, expected 2 axes"));
        };
        if axes.last() != Some(&Axis::Channel) {
            return Err(format!("its input has axes {}, expected the channels last", words(&axes)));
        }
        let plain = ["alpha", "beta"].iter().all(|name| attribute(node, name).is_none_or(|a| a.f == 1.0));
        if !plain || int(node, "transA").unwrap_or(0) != 0 {
            return Err("it scales or transposes its input".into());
        }
        let by_outputs = int(node, "transB").unwrap_or(0) != 0;
        let (outputs, inputs) = if by_outputs { (rows, columns) } else { (columns, rows) };
        let at = |i: usize| if by_outputs { i } else { i % inputs * outputs + i / inputs };
        let weight = (0..weight.len()).map(|i| weight[at(i)]).collect();
        let bias = if node.input.len() > 2 { Some(self.constant(node, 2)?.0) } else { None };
        let layer = Convolution { weight, outputs, inputs, kernel: 1, stride: 1, padding: 0, groups: 1, bias };
        Ok(self.layer_of(node, Kind::Convolution(layer), input, axes))
    }

    /// Nodes that change only where an axis stands.
    pub(super) fn moved(&mut self, node: &NodeProto) -> Output {
        let (form, axes) = self.value(node, 0)?;
        if node.op_type == "Transpose" {
            let reversed: Vec<i64> = (0..axes.len() as i64).rev().collect();
            let order = attribute(node, "perm").map_or(reversed, |a| a.ints.clone());
            let moved: Option<Vec<Axis>> = order.iter().map(|&i| axes.get(usize::try_from(i).ok()?).copied()).collect();
            let moved = moved.filter(|moved| moved.len() == axes.len());
            return Ok((form, moved.ok_or_else(|| format!("order {order:?} of {}", words(&axes)))?));
        }
        if node.op_type == "Gather" {
            // PyTorch writes one after a mean over positions: it takes every value, in order.
            let indices = self.facts.integers(self.name(node, 1)?).ok_or("its indices are not constants")?;
            if axes != [Axis::Channel] || !indices.iter().copied().eq(0..indices.len() as i64) {
                return Err("it does not take all channels in order".into());
            }
        }
        let unknown = || self.facts.failure.clone().unwrap_or_else(|| "tract cannot tell its shape".into());
        let before = self.facts.shape(self.name(node, 0)?).ok_or_else(unknown)?;
        let after = self.facts.shape(&node.output[0]).ok_or_else(unknown)?;
        let misfit = || format!("a change of shape from {before:?} to {after:?}, which mixes axes");
        let mut sizes = axes.iter().zip(before).filter(|(axis, _)| **axis != Axis::One).peekable();
        let mut moved = Vec::new();
        for &size in after {
            // Axes of one value may go.
            while size != 1 && sizes.next_if(|(_, before)| **before == 1).is_some() {}
            match sizes.next_if(|(_, before)| **before == size) {
                Some((axis, _)) => moved.push(*axis),
                None if size == 1 => moved.push(Axis::One),
                None => return Err(misfit()),
            }
        }
        if sizes.any(|(_, before)| *before != 1) { Err(misfit()) } else { Ok((form, moved)) }
    }

    /// What our exporter does with pixels that hold no data: 0 in their place.
    pub(super) fn missing(&mut self, node: &NodeProto) -> Output {
        let misfit = || "it is not where pixels without data become 0".to_owned();
        let is_input = |form: &Form| matches!(form, Form::Sum(sum) if sum.map == 0 && sum.is_map());
        let form = match node.op_type.as_str() {
            "IsNaN" | "IsInf" => self
                .value(node, 0)
                .and_then(|(form, _)| if is_input(&form) { Ok(Form::Missing(None)) } else { Err(misfit()) })?,
            "Equal" => {
                let (form, axes) = self.value(node, 0)?;
                let values = self.coefficients(node, 1, &axes)?;
                if is_input(&form) { Form::Missing(Some(values)) } else { return Err(misfit()) }
            }
            "Or" => match (self.value(node, 0)?.0, self.value(node, 1)?.0) {
                (Form::Missing(a), Form::Missing(b)) if a.is_none() || b.is_none() => Form::Missing(a.or(b)),
                _ => return Err(misfit()),
            },
            _ => match (self.value(node, 0)?.0, self.scalar(node, 1)?, self.value(node, 2)?.0) {
                (Form::Missing(values), 0.0, Form::Sum(sum)) if sum.map == 0 && sum.is_of(&[Atom::One, Atom::X]) => {
                    let (scale, shift) = (sum.terms[&Atom::X].clone(), sum.terms[&Atom::One].clone());
                    let kind = Kind::Normalise { scale, shift, missing: Some(values) };
                    return Ok(self.layer_of(node, kind, 0, MAP.to_vec()));
                }
                _ => return Err(misfit()),
            },
        };
        Ok((form, MAP.to_vec()))
    }
}

/// The square root of a statistic.
fn root(form: &Form) -> Option<Form> {
    match *form {
        Form::Statistic(map, Statistic::VarianceEps(eps)) => Some(Form::Statistic(map, Statistic::Deviation(eps))),
        Form::Statistic(map, Statistic::Energy) => Some(Form::Statistic(map, Statistic::Norm)),
        _ => None,
    }
}

/// One over a statistic.
fn inverse(form: &Form) -> Option<Form> {
    match *form {
        Form::Statistic(map, Statistic::Deviation(eps)) => Some(Form::Statistic(map, Statistic::InverseDeviation(eps))),
        Form::Statistic(map, Statistic::MeanNormEps(eps)) => {
            Some(Form::Statistic(map, Statistic::InverseMeanNorm(eps)))
        }
        _ => None,
    }
}

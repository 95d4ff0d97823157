//! Follows a graph node by node, in the order in which it computes, and says of every value what it is ([`Form`]).
//!
//! A value that became a sum is turned into a layer when a node wants a map: LayerNorm, GELU and GRN need no pattern of nodes, only that
//! what was computed is theirs. Transposes, reshapes and casts change nothing but the names of axes.

use std::collections::HashMap;

use tract_onnx::pb::{AttributeProto, NodeProto};

use super::form::{Atom, Axis, Coefficients, Form, Map, Sum};
use super::layer::{Convolution, Kind, Layer};
use super::source::{Facts, Name, Source};

/// Why a node does not fit, without its name.
pub type Misfit = String;

/// The state of reading.
pub struct Reader<'a> {
    pub(super) facts: &'a Facts,
    values: HashMap<Name, (Form, Vec<Axis>)>,
    uses: HashMap<&'a str, usize>,
    /// Of each value the node that gives it.
    makers: HashMap<&'a str, &'a NodeProto>,
    /// The layers found so far; number 0 is the input.
    pub layers: Vec<Layer>,
}

/// A node for messages: its name and operator.
pub fn named(node: &NodeProto) -> String {
    let output = node.output.first().map_or("", String::as_str);
    let name = if node.name.is_empty() { output } else { &node.name };
    format!("{name:?} ({})", node.op_type)
}

/// The attribute of this name.
pub(super) fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// A whole number, if it is there.
pub(super) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    attribute(node, name).map(|a| a.i)
}

impl<'a> Reader<'a> {
    /// Before the first node.
    pub fn new(source: &'a Source, facts: &'a Facts) -> Self {
        let mut uses = HashMap::new();
        source.nodes().iter().flat_map(|n| &n.input).for_each(|name| *uses.entry(name.as_str()).or_default() += 1);
        let makers = source.nodes().iter().flat_map(|n| n.output.iter().map(move |name| (name.as_str(), n))).collect();
        let axes = vec![Axis::Batch, Axis::Channel, Axis::Row, Axis::Column];
        let input = Layer {
            kind: Kind::Input,
            input: 0,
            value: source.input.clone(),
            axes: axes.clone(),
            node: format!("{:?} (the graph's input)", source.input),
        };
        let values = HashMap::from([(source.input.clone(), (Form::Sum(Sum::of(0, Atom::X, 0.0)), axes))]);
        Self { facts, values, uses, makers, layers: vec![input] }
    }

    /// Reads one node.
    ///
    /// # Errors
    /// What of it does not fit.
    pub fn node(&mut self, node: &NodeProto) -> Result<(), Misfit> {
        let Some(output) = node.output.first().filter(|o| !self.facts.is_constant(o)) else { return Ok(()) };
        let beyond = |name: &String| matches!(self.values.get(name), Some((Form::Beyond, _)));
        let (form, axes) = if node.input.iter().any(beyond) { (Form::Beyond, vec![]) } else { self.compute(node)? };
        let (form, axes) = (self.settled(node, output, form, &axes)?, axes);
        self.values.insert(output.clone(), (form, axes));
        Ok(())
    }

    fn compute(&mut self, node: &NodeProto) -> Result<(Form, Vec<Axis>), Misfit> {
        match node.op_type.as_str() {
            "Identity" | "Dropout" | "Cast" => self.value(node, 0),
            "Transpose" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Gather" => self.moved(node),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node),
            "Pow" | "Sqrt" | "Reciprocal" | "Erf" | "Gelu" => self.function(node),
            "ReduceMean" | "ReduceSum" | "ReduceL2" | "ReduceSumSquare" | "GlobalAveragePool" => self.reduce(node),
            "LayerNormalization" => self.layer_normalization(node),
            "Conv" => self.convolution(node),
            "MatMul" | "Gemm" => self.matrix_product(node),
            "IsNaN" | "IsInf" | "Equal" | "Or" | "Where" => self.missing(node),
            _ => Err("the operator is none that these encoders are made of".into()),
        }
    }

    /// A sum that is complete becomes a layer at once: GELU, a LayerNorm with its bias, the bias of a convolution.
    fn settled(&mut self, node: &NodeProto, output: &Name, form: Form, axes: &[Axis]) -> Result<Form, Misfit> {
        let Form::Sum(sum) = &form else { return Ok(form) };
        let kind = if sum.is_gelu() {
            Kind::Gelu
        } else if sum.is_of(&[Atom::One, Atom::Normalised]) {
            layer_norm(sum)
        } else if sum.is_of(&[Atom::One, Atom::X]) && sum.has_plain(Atom::X) {
            let before = node.input.iter().find(|name| self.values.contains_key(*name));
            let once = before.is_some_and(|name| self.uses.get(name.as_str()) == Some(&1));
            let layer = &mut self.layers[sum.map];
            if let (Kind::Convolution(c @ Convolution { bias: None, .. }), true) = (&mut layer.kind, once) {
                let bias = &sum.terms[&Atom::One];
                c.bias = Some((0..c.outputs).map(|i| bias[i % bias.len()] as f32).collect());
                (layer.value, layer.axes) = (output.clone(), axes.to_vec());
                return Ok(Form::Sum(Sum::of(sum.map, Atom::X, 0.0)));
            }
            return Ok(form);
        } else {
            return Ok(form);
        };
        let map = self.layer(kind, sum.map, output, axes, named(node));
        Ok(Form::Sum(Sum::of(map, Atom::X, 0.0)))
    }

    pub(super) fn layer(&mut self, kind: Kind, input: Map, value: &str, axes: &[Axis], node: String) -> Map {
        self.layers.push(Layer { kind, input, value: value.to_owned(), axes: axes.to_vec(), node });
        self.layers.len() - 1
    }

    /// The output of a node that is a whole layer.
    pub(super) fn layer_of(&mut self, node: &NodeProto, kind: Kind, input: Map, axes: Vec<Axis>) -> (Form, Vec<Axis>) {
        let map = self.layer(kind, input, &node.output[0], &axes, named(node));
        (Form::Sum(Sum::of(map, Atom::X, 0.0)), axes)
    }

    /// Name of input `index`.
    pub(super) fn name<'n>(&self, node: &'n NodeProto, index: usize) -> Result<&'n str, Misfit> {
        let name = node.input.get(index).filter(|name| !name.is_empty());
        name.map(String::as_str).ok_or_else(|| format!("it has no input number {index}"))
    }

    /// Input `index`, which is no constant.
    pub(super) fn value(&self, node: &NodeProto, index: usize) -> Result<(Form, Vec<Axis>), Misfit> {
        let name = self.name(node, index)?;
        self.values.get(name).cloned().ok_or_else(|| {
            let why =
                if self.facts.is_constant(name) { "is a constant" } else { "is not computed by a node before it" };
            format!("its input {name:?} {why}")
        })
    }

    /// Whether input `index` is a constant.
    pub(super) fn is_constant(&self, node: &NodeProto, index: usize) -> bool {
        node.input.get(index).is_some_and(|name| self.facts.is_constant(name))
    }

    /// Input `index`, a constant, and its shape.
    pub(super) fn constant(&self, node: &NodeProto, index: usize) -> Result<(Vec<f32>, Vec<usize>), Misfit> {
        let name = self.name(node, index)?;
        let (values, shape) =
            self.facts.constant(name).ok_or_else(|| format!("its input {name:?} is not a constant of numbers"))?;
        match values.iter().position(|v| v.is_infinite()) {
            Some(at) => Err(format!("its constant {name:?} holds {} at element {at}", values[at])),
            None => Ok((values, shape)),
        }
    }

    /// Input `index`, one number.
    pub(super) fn scalar(&self, node: &NodeProto, index: usize) -> Result<f64, Misfit> {
        let (values, shape) = self.constant(node, index)?;
        match values[..] {
            [value] => Ok(value.into()),
            _ => Err(format!("its constant {:?} has shape {shape:?}, expected one number", node.input[index])),
        }
    }

    /// Input `index`, a constant that differs from channel to channel at most, beside a value with these axes.
    pub(super) fn coefficients(&self, node: &NodeProto, index: usize, axes: &[Axis]) -> Result<Coefficients, Misfit> {
        let (values, shape) = self.constant(node, index)?;
        for (back, _) in shape.iter().rev().enumerate().filter(|(_, size)| **size != 1) {
            if axes.len().checked_sub(back + 1).map(|at| axes[at]) != Some(Axis::Channel) {
                return Err(format!("its constant {:?} of shape {shape:?} does not go by channels", node.input[index]));
            }
        }
        Ok(values.into_iter().map(f64::from).collect())
    }

    /// Input `index` as a map: what was multiplied and added up to here must be a layer.
    pub(super) fn map(&mut self, node: &NodeProto, index: usize) -> Result<(Map, Vec<Axis>), Misfit> {
        let (form, axes) = self.value(node, index)?;
        let name = self.name(node, index)?;
        let Form::Sum(sum) = &form else { return Err(format!("its input {name:?} is {}, not a map", form.describe())) };
        if sum.is_map() {
            return Ok((sum.map, axes));
        }
        let affine = sum.terms.keys().all(|atom| matches!(atom, Atom::One | Atom::X));
        let shares = sum.terms.keys().all(|atom| matches!(atom, Atom::One | Atom::X | Atom::XShare));
        let term = |atom, otherwise: f64| sum.terms.get(&atom).cloned().unwrap_or_else(|| vec![otherwise]);
        let kind = if sum.is_of(&[Atom::Normalised]) {
            layer_norm(sum)
        } else if shares && sum.has_plain(Atom::X) && sum.terms.contains_key(&Atom::XShare) {
            Kind::ResponseNorm { gamma: term(Atom::XShare, 0.0), beta: term(Atom::One, 0.0), eps: sum.eps }
        } else if affine && sum.map == 0 {
            Kind::Normalise { scale: term(Atom::X, 0.0), shift: term(Atom::One, 0.0), missing: None }
        } else {
            let what = if shares && sum.terms.contains_key(&Atom::XShare) {
                "Global Response Normalization without its input added: x + gamma x N + beta"
            } else {
                form.describe()
            };
            return Err(format!("its input {name:?} is {what}, not a map"));
        };
        let maker = self.makers.get(name).map_or_else(String::new, |node| named(node));
        let map = self.layer(kind, sum.map, name, &axes, maker);
        self.values.insert(name.to_owned(), (Form::Sum(Sum::of(map, Atom::X, 0.0)), axes.clone()));
        Ok((map, axes))
    }
}

fn layer_norm(sum: &Sum) -> Kind {
    let bias = sum.terms.get(&Atom::One).cloned().unwrap_or_else(|| vec![0.0]);
    Kind::LayerNorm { weight: sum.terms[&Atom::Normalised].clone(), bias, eps: sum.eps }
}

//! An ONNX file as tract reads it: protobuf, external data, constants folded, shapes inferred.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tract_onnx::data_resolver::FopenDataResolver;
use tract_onnx::model::ParseResult;
use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{ModelProto, NodeProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// What a value is called in the file.
pub type Name = String;

/// A parsed file.
pub struct Source {
    /// The file as it is written.
    pub proto: ModelProto,
    /// Name of the graph's one input, `[batch, bands, height, width]`.
    pub input: Name,
    /// Its shape, where the file fixes it.
    pub shape: [Option<usize>; 4],
    parsed: ParseResult,
}

/// What is known of the values of a graph once the shape of its input is.
pub struct Facts {
    constants: HashMap<Name, Arc<Tensor>>,
    shapes: HashMap<Name, Vec<usize>>,
    /// Why shapes after some node are not known, if so.
    pub failure: Option<String>,
}

impl Source {
    /// Reads a file, and the files beside it that hold its weights, if it says so.
    ///
    /// # Errors
    /// If it cannot be read, is not ONNX, or does not take one batch of tiles.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        ensure!(!bytes.is_empty(), "is empty");
        let proto = onnx().proto_model_for_read(&mut &bytes[..]).map_err(|e| anyhow!("is not an ONNX file: {e}"))?;
        drop(bytes);
        let graph = proto.graph.as_ref().context("is not an ONNX file: it holds no graph")?;
        ensure!(!graph.node.is_empty(), "is not an ONNX file: its graph has no node");
        let given = graph.node.iter().flat_map(|n| &n.output).chain(graph.input.iter().map(|i| &i.name));
        let given: HashSet<&String> = given.chain(graph.initializer.iter().map(|t| &t.name)).collect();
        if let Some(output) = graph.output.iter().find(|output| !given.contains(&output.name)) {
            bail!("no node gives the graph's output {:?}", output.name);
        }
        let folder = path.parent().and_then(Path::to_str);
        let mut framework = onnx().with_ignore_value_info(true);
        framework.provider = Arc::new(FopenDataResolver);
        let parsed = framework.parse(&proto, folder).map_err(|e| anyhow!("tract cannot read the graph: {e:#}"))?;
        ensure!(
            parsed.unresolved_inputs.is_empty(),
            "the graph uses {}, which nothing gives",
            parsed.unresolved_inputs[0]
        );

        let constant = |name: &str| graph.initializer.iter().any(|t| t.name == name);
        let inputs: Vec<_> = graph.input.iter().filter(|input| !constant(&input.name)).collect();
        let [input] = inputs[..] else { bail!("the graph has {} inputs, expected one: tiles", inputs.len()) };
        let Some(Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
            bail!("input {} is not a tensor", input.name);
        };
        let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
        use tract_onnx::pb::tensor_shape_proto::dimension::Value::DimValue;
        let sizes: Vec<_> = dims
            .iter()
            .map(|d| if let Some(DimValue(n)) = d.value { usize::try_from(n).ok().filter(|n| *n > 0) } else { None })
            .collect();
        let found = sizes.len();
        let shape = sizes.try_into().ok();
        let shape = shape.with_context(|| {
            format!("input {} has {found} axes, expected 4: [batch, bands, height, width]", input.name)
        })?;
        let element = tensor.elem_type;
        ensure!(element == 1, "input {} has element type {element} of ONNX, expected 1 (f32)", input.name);
        Ok(Self { input: input.name.clone(), shape, parsed, proto })
    }

    /// The nodes on which the graph's outputs depend.
    pub fn live_nodes(&self) -> Vec<&NodeProto> {
        let outputs = self.proto.graph.iter().flat_map(|graph| &graph.output);
        let mut needed: HashSet<&str> = outputs.map(|output| output.name.as_str()).collect();
        let mut live: Vec<&NodeProto> = Vec::new();
        for node in self.nodes().iter().rev() {
            if node.output.iter().any(|name| needed.contains(name.as_str())) {
                needed.extend(node.input.iter().map(String::as_str));
                live.push(node);
            }
        }
        live.reverse();
        live
    }

    /// The nodes in the order in which they compute.
    pub fn nodes(&self) -> &[NodeProto] {
        self.proto.graph.as_ref().map_or(&[], |graph| &graph.node)
    }

    /// tract's model for an input of this shape.
    ///
    /// # Errors
    /// If tract refuses the shape.
    pub fn model(&self, shape: [usize; 4]) -> Result<InferenceModel> {
        let mut model = self.parsed.model.clone();
        let outlet = self.parsed.outlets_by_name[&self.input];
        model.set_outlet_fact(outlet, InferenceFact::dt_shape(f32::datum_type(), shape))?;
        Ok(model)
    }

    /// Where tract has the values `names`.
    ///
    /// # Errors
    /// If it has not.
    pub fn outlets(&self, names: &[Name]) -> Result<Vec<OutletId>> {
        let find = |name| self.parsed.outlets_by_name.get(name).copied();
        names.iter().map(|name| find(name).with_context(|| format!("no value {name}"))).collect()
    }

    /// Constants and shapes for an input of this shape.
    ///
    /// # Errors
    /// If tract refuses the shape.
    pub fn facts(&self, shape: [usize; 4]) -> Result<Facts> {
        let mut model = self.model(shape)?;
        // Shapes that do not fit are found again, and explained, where the node is looked at.
        let failure = model.analyse(true).err().map(|e| format!("{e:#}"));
        let mut facts = Facts { constants: HashMap::new(), shapes: HashMap::new(), failure };
        let names: HashMap<OutletId, &Name> = self.parsed.outlets_by_name.iter().map(|(k, v)| (*v, k)).collect();
        for node in model.eval_order()? {
            let node = model.node(node);
            let inputs: Option<TVec<TValue>> =
                node.inputs.iter().map(|i| Some(facts.constants.get(*names.get(i)?)?.clone().into_tvalue())).collect();
            // tract itself leaves large constants as they are.
            let folded = match inputs.filter(|inputs| !inputs.is_empty()) {
                Some(inputs) => node.op.eval_out_of_plan(inputs).ok().flatten(),
                None => None,
            };
            for (slot, output) in node.outputs.iter().enumerate() {
                let Some(name) = names.get(&OutletId::new(node.id, slot)) else { continue };
                if let Some(shape) = output.fact.shape.concretize() {
                    let sizes: Option<Vec<usize>> = shape.iter().map(|d| d.to_usize().ok()).collect();
                    facts.shapes.extend(sizes.map(|sizes| ((*name).clone(), sizes)));
                }
                let folded = folded.as_ref().and_then(|values| values.get(slot)).map(|v| v.clone().into_arc_tensor());
                if let Some(value) = output.fact.value.concretize().or(folded) {
                    facts.shapes.insert((*name).clone(), value.shape().to_vec());
                    facts.constants.insert((*name).clone(), value);
                }
            }
        }
        Ok(facts)
    }
}

impl Facts {
    /// The value of a constant in f32, and its shape. `None` if it depends on the input or is not of numbers.
    pub fn constant(&self, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let tensor = self.constants.get(name)?;
        let numbers = tensor.cast_to::<f32>().ok()?;
        Some((numbers.to_plain_array_view::<f32>().ok()?.iter().copied().collect(), tensor.shape().to_vec()))
    }

    /// The value of a constant of whole numbers.
    pub fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let numbers = self.constants.get(name)?.cast_to::<i64>().ok()?;
        Some(numbers.to_plain_array_view::<i64>().ok()?.iter().copied().collect())
    }

    /// Whether a value does not depend on the input.
    pub fn is_constant(&self, name: &str) -> bool {
        self.constants.contains_key(name)
    }

    /// The shape of a value, if tract can tell.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }
}

//! The encoder as an ONNX graph.
//!
//! Maps are `[batch, channels, height, width]`, pointwise layers 1x1 convolutions; LayerNorm over channels stands between two
//! transpositions, as ONNX's is over the last axes. Opset 20 is the first with Gelu. The protobuf types are tract's,
//! generated from ONNX's own description.

use anyhow::{Result, ensure};
use nadir_formats::{Encoder as EncoderFile, Tensor as Array};
use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// Name of the graph's input: sensor values, f32 `[batch, bands, height, width]`.
pub const INPUT: &str = "tiles";
/// Name of its output: f32 `[batch, dimension]`.
pub const OUTPUT: &str = "embedding";

const OPSET: i64 = 20;
/// The version of the container that goes with opset 20.
const IR_VERSION: i64 = 9;
/// No protobuf message may be longer.
const MAX_BYTES: usize = i32::MAX as usize;

/// The encoder as the bytes of an ONNX file: sensor values in, normalisation by the card inside, embeddings out. The card
/// stands in the file's metadata under the key `nadir`.
///
/// A value that is not finite or is the band's no-data value counts as the band's mean, as in `trainer embed`. With
/// `batch` the number of tiles of a run is fixed, without it is free.
///
/// # Errors
/// If the file would have 2 GiB or more.
pub fn onnx(file: &EncoderFile, batch: Option<usize>) -> Result<Vec<u8>> {
    let mut graph = Graph { file, nodes: Vec::new(), constants: Vec::new() };
    graph.encoder();
    let (a, bands) = (&file.card.architecture, file.card.bands.len());
    let side = i64::from(a.tile_size);
    let card = serde_json::to_string(&file.card)?;
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        producer_name: "nadir trainer".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        metadata_props: vec![StringStringEntryProto { key: nadir_formats::CARD_KEY.into(), value: card }],
        graph: Some(GraphProto {
            name: file.card.name.clone(),
            node: graph.nodes,
            initializer: graph.constants,
            input: vec![value(INPUT, batch, &[bands as i64, side, side])],
            output: vec![value(OUTPUT, batch, &[a.embedding_dimension() as i64])],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let length = model.encoded_len();
    ensure!(length <= MAX_BYTES, "the encoder needs {length} bytes, an ONNX file holds at most {MAX_BYTES}");
    Ok(model.encode_to_vec())
}

/// An f32 input or output whose first axis is the batch.
fn value(name: &str, batch: Option<usize>, shape: &[i64]) -> ValueInfoProto {
    let batch = match batch {
        Some(n) => dimension::Value::DimValue(n as i64),
        None => dimension::Value::DimParam("batch".into()),
    };
    let dims = std::iter::once(batch).chain(shape.iter().map(|d| dimension::Value::DimValue(*d)));
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).collect();
    let tensor = type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: values.into(), r#type: AttributeType::Ints.into(), ..Default::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: value, r#type: AttributeType::Int.into(), ..Default::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: value, r#type: AttributeType::Float.into(), ..Default::default() }
}

/// The value of a node or constant, by name.
type Name = String;

struct Graph<'a> {
    file: &'a EncoderFile,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Graph<'_> {
    /// Adds a node, whose output gets a new name.
    fn add(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Name {
        let name = format!("v{}", self.nodes.len());
        self.nodes.push(NodeProto {
            op_type: op.into(),
            name: format!("{op}_{}", self.nodes.len()),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![name.clone()],
            attribute: attributes,
            ..NodeProto::default()
        });
        name
    }

    fn bytes(&mut self, name: Name, shape: &[usize], kind: DataType, raw_data: Vec<u8>) -> Name {
        if self.constants.iter().all(|c| c.name != name) {
            let dims = shape.iter().map(|d| *d as i64).collect();
            self.constants.push(TensorProto {
                name: name.clone(),
                dims,
                data_type: kind.into(),
                raw_data,
                ..TensorProto::default()
            });
        }
        name
    }

    fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Name {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.bytes(name.to_owned(), shape, DataType::Float, raw)
    }

    fn axes(&mut self, axes: &[i64]) -> Name {
        let name = format!("axes{}", axes.iter().map(|a| format!("_{a}")).collect::<String>());
        let raw = axes.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.bytes(name, &[axes.len()], DataType::Int64, raw)
    }

    /// A tensor of the encoder, under its own name.
    fn weight(&mut self, name: &str) -> Name {
        let Array { shape, data } = self.file.tensor(name);
        self.constant(name, shape, data)
    }

    fn conv(&mut self, x: &str, name: &str, stride: usize, pad: usize, group: usize) -> Name {
        let shape = self.file.tensor(&format!("{name}.weight")).shape.clone();
        let (weight, bias) = (self.weight(&format!("{name}.weight")), self.weight(&format!("{name}.bias")));
        let attributes = vec![
            ints("kernel_shape", &[shape[2] as i64, shape[3] as i64]),
            ints("strides", &[stride as i64; 2]),
            ints("pads", &[pad as i64; 4]),
            int("group", group as i64),
        ];
        self.add("Conv", &[x, &weight, &bias], attributes)
    }

    /// A pointwise layer: a 1x1 convolution.
    fn linear(&mut self, x: &str, name: &str) -> Name {
        let Array { shape, data } = self.file.tensor(&format!("{name}.weight"));
        let weight = self.constant(&format!("{name}.weight"), &[shape[0], shape[1], 1, 1], data);
        let bias = self.weight(&format!("{name}.bias"));
        self.add("Conv", &[x, &weight, &bias], vec![ints("kernel_shape", &[1, 1])])
    }

    /// LayerNorm over the last axis.
    fn norm(&mut self, x: &str, name: &str) -> Name {
        let (weight, bias) = (self.weight(&format!("{name}.weight")), self.weight(&format!("{name}.bias")));
        let eps = self.file.card.architecture.ln_eps;
        self.add("LayerNormalization", &[x, &weight, &bias], vec![int("axis", -1), float("epsilon", eps)])
    }

    /// LayerNorm over the channels of a map.
    fn norm_channels(&mut self, x: &str, name: &str) -> Name {
        let last = self.add("Transpose", &[x], vec![ints("perm", &[0, 2, 3, 1])]);
        let y = self.norm(&last, name);
        self.add("Transpose", &[&y], vec![ints("perm", &[0, 3, 1, 2])])
    }

    /// Global Response Normalization: `x (1 + gamma G / (mean of G + eps)) + beta`, G a channel's norm over positions.
    fn response_norm(&mut self, x: &str, name: &str) -> Name {
        let keep = || vec![int("keepdims", 1)];
        let (space, channels) = (self.axes(&[2, 3]), self.axes(&[1]));
        let squares = self.add("Mul", &[x, x], vec![]);
        let energy = self.add("ReduceSum", &[&squares, &space], keep());
        let norm = self.add("Sqrt", &[&energy], vec![]);
        let mean = self.add("ReduceMean", &[&norm, &channels], keep());
        let eps = self.constant("grn_eps", &[1], &[self.file.card.architecture.grn_eps]);
        let mean = self.add("Add", &[&mean, &eps], vec![]);
        let share = self.add("Div", &[&norm, &mean], vec![]);
        let mut part = |part: &str| {
            let name = format!("{name}.grn.{part}");
            let data = &self.file.tensor(&name).data;
            self.constant(&name, &[1, data.len(), 1, 1], data)
        };
        let (gamma, beta) = (part("gamma"), part("beta"));
        let one = self.constant("one", &[1], &[1.0]);
        let factor = self.add("Mul", &[&gamma, &share], vec![]);
        let factor = self.add("Add", &[&factor, &one], vec![]);
        let scaled = self.add("Mul", &[x, &factor], vec![]);
        self.add("Add", &[&scaled, &beta], vec![])
    }

    fn block(&mut self, x: &str, name: &str, channels: usize) -> Name {
        let y = self.conv(x, &format!("{name}.dwconv"), 1, 3, channels);
        let y = self.norm_channels(&y, &format!("{name}.norm"));
        let y = self.linear(&y, &format!("{name}.pwconv1"));
        let y = self.add("Gelu", &[&y], vec![]);
        let y = self.response_norm(&y, name);
        let y = self.linear(&y, &format!("{name}.pwconv2"));
        self.add("Add", &[x, &y], vec![])
    }

    /// Sensor values to what the encoder reads, 0 where there is no data.
    fn normalise(&mut self, x: &str) -> Name {
        let bands = &self.file.card.bands;
        let shape = [1, bands.len(), 1, 1];
        let column = |f: fn(&nadir_formats::BandCard) -> f32| bands.iter().map(f).collect::<Vec<_>>();
        let mean = self.constant("mean", &shape, &column(|b| b.mean));
        let std = self.constant("std", &shape, &column(|b| b.std));
        let zero = self.constant("zero", &[1], &[0.0]);
        let (nan, infinite) = (self.add("IsNaN", &[x], vec![]), self.add("IsInf", &[x], vec![]));
        let mut missing = self.add("Or", &[&nan, &infinite], vec![]);
        if bands.iter().any(|b| b.no_data.is_some()) {
            // A band without one gets a NaN, which equals nothing.
            let no_data = self.constant("no_data", &shape, &column(|b| b.no_data.unwrap_or(f32::NAN)));
            let equal = self.add("Equal", &[x, &no_data], vec![]);
            missing = self.add("Or", &[&missing, &equal], vec![]);
        }
        let centred = self.add("Sub", &[x, &mean], vec![]);
        let scaled = self.add("Div", &[&centred, &std], vec![]);
        self.add("Where", &[&missing, &zero, &scaled], vec![])
    }

    fn encoder(&mut self) {
        let a = self.file.card.architecture;
        let mut x = self.normalise(INPUT);
        let mut groups = 1;
        if !a.is_patchify() {
            x = self.conv(&x, "initial_conv.0", 1, a.initial_padding(), 1);
            x = self.norm_channels(&x, "initial_conv.1");
            x = self.add("Gelu", &[&x], vec![]);
            groups = a.dim(0);
        }
        x = self.conv(&x, "stem.0", a.stem_stride(), a.stem_pad(), groups);
        x = self.norm_channels(&x, "stem.1");
        for stage in 0..nadir::model::STAGES {
            if stage > 0 {
                let name = format!("downsample_layers.{}", stage - 1);
                x = self.norm_channels(&x, &format!("{name}.0"));
                x = self.conv(&x, &format!("{name}.1"), 2, 0, 1);
            }
            for block in 0..a.depth(stage) {
                x = self.block(&x, &format!("stages.{stage}.{block}"), a.dim(stage));
            }
        }
        let space = self.axes(&[2, 3]);
        let pooled = self.add("ReduceMean", &[&x, &space], vec![int("keepdims", 0)]);
        self.norm(&pooled, "norm");
        if let Some(last) = self.nodes.last_mut() {
            last.output = vec![OUTPUT.into()];
        }
    }
}

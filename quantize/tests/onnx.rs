//! ONNX encoders as PyTorch exports them (`tests/reference/make_onnx.py`): their weights must be those of the state dictionary, their
//! embeddings those of ONNX Runtime; graphs that are not of this family are refused by the first node that does not fit.
#![cfg(feature = "onnx")]

use std::path::{Path, PathBuf};

use nadir_formats::{Encoder, Tiles};
use nadir_quantize::onnx::run::Graph;
use nadir_quantize::onnx::{OnnxEncoder, read};
use nadir_quantize::reference::{Blind, Reference};
use prost::Message;
use safetensors::SafeTensors;
use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

/// Each export, the encoder that it holds, and how far its weights may be off, relative.
const EXPORTS: [(&str, &str, f32); 9] = [
    ("own", "timm", 0.0),
    ("timm-script-11", "timm", 0.0),
    ("timm-script-17-classifier", "timm", 0.0),
    ("timm-dynamo-18-external", "timm", 0.0),
    ("timm-dynamo-20-classifier", "timm", 0.0),
    ("mmearth-script-13-classifier", "mmearth", 0.0),
    ("mmearth-dynamo-18-classifier", "mmearth", 0.0),
    ("mmearth-constants-f16", "mmearth", 1.0 / 2048.0),
    ("patchify", "patchify", 0.0),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference/onnx")
}

fn import(name: &str, encoder: &str) -> OnnxEncoder {
    let card = folder().join(format!("{encoder}.card.json"));
    // Our own holds its card.
    read(&folder().join(format!("{name}.onnx")), (name != "own").then_some(card.as_path())).unwrap()
}

#[test]
fn weights_are_those_of_the_state_dictionary() {
    for (name, encoder, bound) in EXPORTS {
        let expected = Encoder::read(&folder().join(format!("{encoder}.safetensors"))).unwrap();
        let found = import(name, encoder).encoder;
        assert_eq!(found.tensors.len(), expected.tensors.len(), "{name}");
        for (tensor, expected) in &expected.tensors {
            let found = found.tensor(tensor);
            assert_eq!(found.shape, expected.shape, "{name}: {tensor}");
            for (i, (f, e)) in found.data.iter().zip(&expected.data).enumerate() {
                // The smallest normal f16: below it the steps are even.
                let limit = bound * e.abs().max(6.1e-5);
                assert!((f - e).abs() <= limit, "{name}: {tensor} element {i}: {f}, expected {e}");
            }
        }
        let (found, expected) = (&found.card.architecture, &expected.card.architecture);
        assert_eq!(
            (found.depths, found.dims, found.tile_size, found.patch_size, found.stem_padding),
            (expected.depths, expected.dims, expected.tile_size, expected.patch_size, expected.stem_padding)
        );
        assert!(bound > 0.0 || (found.grn_eps, found.ln_eps) == (expected.grn_eps, expected.ln_eps), "{name}");
    }
}

#[test]
fn embeddings_are_those_of_onnx_runtime() {
    let bytes = std::fs::read(folder().join("embeddings.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, encoder, bound) in EXPORTS {
        let tiles = if encoder == "patchify" { "patchify-tiles.npy" } else { "tiles.npy" };
        let tiles = Tiles::read(&folder().join(tiles)).unwrap();
        let onnx = import(name, encoder);
        let view = vectors.tensor(encoder).unwrap();
        let expected: Vec<f64> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect();
        let (reference, graph) = (Reference::new(&onnx.encoder), Graph::new(&onnx).unwrap());
        for (i, expected) in expected.chunks_exact(12).enumerate() {
            let ours = reference.embed(tiles.tile(i), &mut Blind);
            let maps = graph.maps(tiles.tile(i)).unwrap();
            assert_eq!(maps.len(), 10, "{name}: a map of the stem, of 3 downsamplings, of 5 blocks, and the embedding");
            for (what, found) in [("reference", &ours), ("tract", &maps.last().unwrap().values)] {
                let square = |v: f64| v * v;
                let error: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
                let relative = (error / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt();
                // Half the weights in f16.
                let limit = if bound > 0.0 { 1e-2 } else { 1e-5 };
                assert!(relative < limit, "{name}: {what}, tile {i}: {relative:.1e}");
            }
        }
    }
}

/// timm's model with smaller patches: the part of its weight at the upper left, as it lies.
#[test]
fn patchify_stems_of_every_kernel_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.onnx");
    let tiles = Tiles::read(&folder().join("patchify-tiles.npy")).unwrap();
    for k in [1, 2, 4] {
        let bytes = std::fs::read(folder().join("patchify.onnx")).unwrap();
        let mut model = ModelProto::decode(&*bytes).unwrap();
        let graph = model.graph.as_mut().unwrap();
        let conv = nth(graph, "Conv", 0);
        for attribute in conv.attribute.iter_mut().filter(|a| ["kernel_shape", "strides"].contains(&a.name.as_str())) {
            attribute.ints = vec![k; 2];
        }
        let name = conv.input[1].clone();
        let weight = graph.initializer.iter_mut().find(|t| t.name == name).unwrap();
        weight.dims = vec![4, 3, k, k];
        weight.raw_data.truncate(4 * 4 * 3 * (k * k) as usize);
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let onnx = read(&path, Some(&folder().join("patchify.card.json"))).unwrap();
        let found = onnx.encoder.card.architecture;
        assert!(found.is_patchify() && i64::from(found.patch_size) == 8 * k, "{found:?}");
        assert_eq!(onnx.encoder.tensor("stem.0.weight").shape, [4, 3, k as usize, k as usize]);
        let ours = Reference::new(&onnx.encoder).embed(tiles.tile(0), &mut Blind);
        let maps = Graph::new(&onnx).unwrap().maps(tiles.tile(0)).unwrap();
        for (ours, tract) in ours.iter().zip(&maps.last().unwrap().values) {
            assert!((ours - tract).abs() < 1e-4, "kernel {k}: {ours} and {tract}");
        }
    }
}

/// The error of a file that is `name` after `change`.
fn refused(name: &str, change: impl Fn(&mut GraphProto)) -> String {
    let mut model = ModelProto::decode(&*std::fs::read(folder().join(format!("{name}.onnx"))).unwrap()).unwrap();
    change(model.graph.as_mut().unwrap());
    refused_bytes(&model.encode_to_vec())
}

fn refused_bytes(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.onnx");
    std::fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read(&path, Some(&folder().join("timm.card.json"))).err().expect("an error"));
    println!("{}", error.replace(&dir.path().display().to_string(), ""));
    assert!(error.contains("bad.onnx"), "{error}");
    error
}

/// The `n`-th node with this operator.
fn nth<'g>(graph: &'g mut GraphProto, operator: &str, n: usize) -> &'g mut NodeProto {
    graph.node.iter_mut().filter(|node| node.op_type == operator).nth(n).unwrap()
}

fn has(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not contain {part:?}");
    }
}

#[test]
fn broken_graphs_are_refused_by_the_first_node_that_does_not_fit() {
    let swapped = refused("timm-script-11", |g| nth(g, "Erf", 1).op_type = "Tanh".into());
    has(&swapped, &["\"/stages/stages.0/blocks/blocks.0/mlp/act/Erf\" (Tanh)", "GELU", "block 0.0"]);

    // Convolutions: initial, stem, then three in each block and one in each downsampling.
    let kernel = refused("own", |g| {
        let pads = nth(g, "Conv", 2).attribute.iter_mut().find(|a| a.name == "pads").unwrap();
        pads.ints = vec![2; 4];
    });
    has(
        &kernel,
        &["(Conv)", "7x7, stride 1, padding 2", "expected a depthwise 7x7 convolution, padding 3 (block 0.0)"],
    );

    let no_grn = refused("own", |g| {
        let gelu = nth(g, "Gelu", 1).output[0].clone();
        nth(g, "Conv", 4).input[0] = gelu;
    });
    has(&no_grn, &["(Conv)", "from 16 to 4 channels", "expected Global Response Normalization after GELU (block 0.0)"]);

    let half_grn = refused("timm-script-11", |g| {
        // What is added to the normalised values is their own input; without it they go on alone.
        let before = g.node.iter().position(|n| n.name.ends_with("blocks.0/mlp/fc2/Conv")).unwrap();
        let add = g.node[before - 1].clone();
        assert_eq!(add.op_type, "Add");
        g.node[before].input[0] = add.input[1].clone();
    });
    has(&half_grn, &["fc2/Conv\" (Conv)", "without its input added"]);

    let no_norm = refused("own", |g| {
        let depthwise = nth(g, "Conv", 2).output[0].clone();
        nth(g, "Conv", 3).input[0] = depthwise;
    });
    has(
        &no_norm,
        &["(Conv)", "from 4 to 16 channels", "expected LayerNorm over channels after the depthwise convolution"],
    );

    let order = refused("own", |g| {
        // GELU, then LayerNorm, in the stem.
        let at = |g: &GraphProto, operator: &str, n: usize| {
            g.node.iter().enumerate().filter(|(_, node)| node.op_type == operator).nth(n).unwrap().0
        };
        let (conv, gelu, last) = (at(g, "Conv", 0), at(g, "Gelu", 0), at(g, "Transpose", 1));
        let normed = g.node[last].output[0].clone();
        let mut node = g.node.remove(gelu);
        node.input[0] = g.node[conv].output[0].clone();
        g.node[conv + 1].input[0] = node.output[0].clone();
        g.node.insert(conv + 1, node);
        nth(g, "Conv", 1).input[0] = normed;
    });
    has(&order, &["(Gelu)", "found GELU", "expected LayerNorm over channels after the initial convolution"]);

    let approximate = refused("own", |g| {
        let attribute = tract_onnx::pb::AttributeProto {
            name: "approximate".into(),
            s: b"tanh".to_vec(),
            r#type: 3,
            ..Default::default()
        };
        nth(g, "Gelu", 2).attribute.push(attribute);
    });
    has(&approximate, &["(Gelu)", "tanh", "expected GELU"]);

    let residual = refused("own", |g| {
        // The second block of stage 2 adds what entered the first.
        let first = nth(g, "Conv", 10).input[0].clone();
        let second = nth(g, "Conv", 13).input[0].clone();
        let add = g.node.iter_mut().find(|n| n.op_type == "Add" && n.input.contains(&second)).unwrap();
        add.input.iter_mut().filter(|name| **name == second).for_each(|name| *name = first.clone());
    });
    has(&residual, &["(Add)", "a sum of other maps", "the sum with the block's input (block 2.1)"]);

    let patchify = refused("patchify", |g| {
        let pads = nth(g, "Conv", 0).attribute.iter_mut().find(|a| a.name == "pads").unwrap();
        pads.ints = vec![1; 4];
    });
    has(&patchify, &["stem.0/Conv\" (Conv)", "4x4, stride 4, padding 1", "or a patchify stem"]);
}

#[test]
fn files_that_are_no_graph_are_refused() {
    let own = std::fs::read(folder().join("own.onnx")).unwrap();
    has(&refused_bytes(&own[..own.len() / 2]), &["is not an ONNX file"]);
    has(&refused_bytes(b"PK\x03\x04 this is no protobuf"), &["is not an ONNX file"]);
    has(&refused_bytes(b""), &["is empty"]);
    let external = std::fs::read(folder().join("timm-dynamo-18-external.onnx")).unwrap();
    has(&refused_bytes(&external), &["timm-dynamo-18-external.onnx.data"]);
    has(&refused("own", |g| drop(g.node.split_off(40))), &["no node gives the graph's output \"embedding\""]);
    // The map of the last block is all that the graph gives.
    let early = refused("own", |g| g.output[0].name = nth(g, "ReduceMean", 5).input[0].clone());
    has(&early, &["the graph ends before the embedding", "the mean over all positions (head)"]);
    // No prefix of a file makes anything panic.
    for length in (0..own.len()).step_by(997) {
        refused_bytes(&own[..length]);
    }
}

#[test]
fn cards_must_go_with_the_graph() {
    let dir = tempfile::tempdir().unwrap();
    let card = dir.path().join("card.json");
    let graph = folder().join("timm-script-11.onnx");
    let text = std::fs::read_to_string(folder().join("timm.card.json")).unwrap();
    let fails = |text: &str, graph: &Path| {
        std::fs::write(&card, text).unwrap();
        format!("{:#}", read(graph, Some(&card)).err().expect("an error"))
    };
    has(&format!("{:#}", read(&graph, None).err().unwrap()), &["has no model card", "--card"]);
    has(&fails("no json", &graph), &["card.json", "is not JSON"]);
    has(&fails(&text.replace("\"B3\"", "\"B4\""), &graph), &["B4 is named twice"]);
    let whole = Encoder::read(&folder().join("mmearth.safetensors")).unwrap().card;
    has(&fails(&serde_json::to_string(&whole).unwrap(), &graph), &["patch_size is 16 in the card and 8 in the graph"]);

    // A graph for tiles of any size takes the card's.
    let free = dir.path().join("free.onnx");
    let mut model = ModelProto::decode(&*std::fs::read(&graph).unwrap()).unwrap();
    let Some(Value::TensorType(tensor)) =
        model.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap().value.as_mut()
    else {
        panic!("a tensor")
    };
    tensor.shape.as_mut().unwrap().dim[2..].iter_mut().for_each(|d| d.value = None);
    std::fs::write(&free, model.encode_to_vec()).unwrap();
    has(&fails(&text, &free), &["leaves its size open", "architecture.tile_size"]);
    std::fs::write(&card, text.replacen('{', "{ \"architecture\": { \"tile_size\": 48 },", 1)).unwrap();
    assert_eq!(read(&free, Some(&card)).unwrap().encoder.card.architecture.tile_size, 48);

    let mut own = Encoder::read(&folder().join("timm.safetensors")).unwrap().card;
    own.bands[1].std = 41.0;
    let own = serde_json::to_string(&own).unwrap();
    has(&fails(&own, &folder().join("own.onnx")), &["normalises band B3 by mean 90", "the card by 90 and 41"]);
}

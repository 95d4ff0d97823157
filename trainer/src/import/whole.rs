//! The rest of MMEarth's pretraining model: the decoder block, the heads and what they share.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use nadir::model::Architecture;
use nadir_formats::Tensor as Array;
use rand::SeedableRng;
use rand::rngs::StdRng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::json;

use super::source::{Change, Source, Wanted};
use crate::mpmae::{MpMae, MpMaeConfig, Task, TaskKind};

/// What MMEarth predicts, in the order of its log variances; Sentinel-2 comes with as many channels as it has bands.
fn modality(name: &str, bands: usize) -> Option<TaskKind> {
    let pixels = |channels| TaskKind::PixelRegression { channels, normalise_patches: false };
    Some(match name {
        // The recipes of the released checkpoints normalise its patches.
        "sentinel2" => TaskKind::PixelRegression { channels: bands, normalise_patches: true },
        "sentinel1" => pixels(8),
        "aster" | "canopy_height_eth" => pixels(2),
        "dynamic_world" => TaskKind::PixelClassification { classes: 9 },
        "esa_worldcover" => TaskKind::PixelClassification { classes: 11 },
        "era5" => TaskKind::ImageRegression { width: 12 },
        "lat" | "lon" | "month" => TaskKind::ImageRegression { width: 2 },
        "biome" => TaskKind::ImageClassification { classes: 14 },
        "eco_region" => TaskKind::ImageClassification { classes: 846 },
        _ => return None,
    })
}

/// Metadata key of the description.
const KEY: &str = "nadir-mpmae";

/// A whole pretraining model.
#[derive(Clone, Debug)]
pub struct Whole {
    /// What it predicts, in the order of the file.
    pub tasks: Vec<Task>,
    /// Its decoder. The share of hidden patches is that of the recipe, 0.6.
    pub config: MpMaeConfig,
    /// All parameters, named as [`MpMae::params`] says, f32.
    pub parameters: BTreeMap<String, Array>,
    /// How many entries of the file were one and the same decoder block.
    pub decoders: usize,
    architecture: Architecture,
    bands: usize,
}

impl Whole {
    /// The model, ready to be trained on.
    ///
    /// # Errors
    /// If the architecture does not allow for it.
    pub fn model(&self, device: &Device) -> Result<MpMae> {
        // Any seed: every parameter is overwritten.
        let mut rng = StdRng::seed_from_u64(0);
        let model = MpMae::init(&self.architecture, self.bands, &self.tasks, self.config, &mut rng, device)?;
        model.params().load(&self.parameters)?;
        Ok(model)
    }

    /// Number of parameters, the decoder block counted once.
    pub fn count(&self) -> usize {
        self.parameters.values().map(|a| a.data.len()).sum()
    }

    /// Writes the parameters as safetensors (f32), with a description as JSON under the metadata key `nadir-mpmae`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let tasks: Vec<_> =
            self.tasks.iter().map(|t| json!({"name": t.name, "kind": format!("{:?}", t.kind)})).collect();
        let about = json!({
            "architecture": self.architecture,
            "bands": self.bands,
            "tasks": tasks,
            "decoder_dim": self.config.decoder_dim,
            "decoder_grn_eps": self.config.decoder_grn_eps,
            "uncertainty": self.config.uncertainty,
            "licence": super::LICENCE,
        });
        write_safetensors(path, &self.parameters, HashMap::from([(KEY.to_owned(), about.to_string())]))
    }

    /// Reads what [`write`](Self::write) wrote; nothing if the file is safetensors of another kind.
    ///
    /// # Errors
    /// If the file cannot be read, is not safetensors, or holds values that are not finite.
    pub fn read(path: &Path) -> Result<Option<WholeFile>> {
        let shown = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(shown)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(shown)?;
        let Some(about) = header.metadata().as_ref().and_then(|m| m.get(KEY)) else { return Ok(None) };
        let About { architecture, bands, tasks } = serde_json::from_str(about).with_context(shown)?;
        architecture.validate().with_context(shown)?;
        let mut parameters = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).with_context(shown)?.iter() {
            ensure!(view.dtype() == Dtype::F32, "{}: tensor {name} is {:?}, expected F32", shown(), view.dtype());
            let data: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            ensure!(data.iter().all(|v| v.is_finite()), "{}: tensor {name} is not finite", shown());
            parameters.insert(name.to_owned(), Array { shape: view.shape().to_vec(), data });
        }
        let tasks = tasks.into_iter().map(|task| task.name).collect();
        Ok(Some(WholeFile { architecture, bands, tasks, parameters }))
    }
}

/// A file that [`Whole::write`] wrote, as far as training on needs it.
#[derive(Clone, Debug)]
pub struct WholeFile {
    /// The encoder's shape.
    pub architecture: Architecture,
    /// Bands that it takes.
    pub bands: usize,
    /// Names of the tasks, in the order of the log variances.
    pub tasks: Vec<String>,
    /// All parameters, named as [`MpMae::params`] says.
    pub parameters: BTreeMap<String, Array>,
}

/// The description in the file.
#[derive(Deserialize)]
struct About {
    architecture: Architecture,
    bands: usize,
    tasks: Vec<AboutTask>,
}

#[derive(Deserialize)]
struct AboutTask {
    name: String,
}

/// Writes f32 tensors, whole or not at all.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Array>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let bytes: BTreeMap<_, Vec<u8>> =
        tensors.iter().map(|(k, t)| (k, t.data.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = tensors
        .iter()
        .map(|(k, t)| Ok((k, TensorView::new(Dtype::F32, t.shape.clone(), &bytes[k])?)))
        .collect::<Result<Vec<_>>>()?;
    Ok(nadir_formats::write_atomic(path, &safetensors::serialize(views, Some(metadata))?)?)
}

/// The parts of the model outside of the encoder, and the tensors of the file that make them.
pub(super) struct Rest {
    tasks: Vec<Task>,
    config: MpMaeConfig,
    pub wanted: Vec<Wanted>,
}

/// The parts of a decoder block, with shapes for its `d` channels.
fn block(d: usize) -> [(&'static str, Vec<usize>); 10] {
    [
        ("dwconv.weight", vec![d, 1, 7, 7]),
        ("dwconv.bias", vec![d]),
        ("norm.weight", vec![d]),
        ("norm.bias", vec![d]),
        ("pwconv1.weight", vec![4 * d, d]),
        ("pwconv1.bias", vec![4 * d]),
        ("grn.gamma", vec![1, 1, 1, 4 * d]),
        ("grn.beta", vec![1, 1, 1, 4 * d]),
        ("pwconv2.weight", vec![d, 4 * d]),
        ("pwconv2.bias", vec![d]),
    ]
}

const LOG_VARS: &str = "loss_fn.log_vars";

/// Whether `name` belongs to the rest of a pretraining model. Some of these stay behind in files of encoders alone.
pub(super) fn belongs(name: &str) -> bool {
    let module = name.split('.').next().unwrap_or(name);
    ["mask_token", "proj", "decoder_dict", "pred_dict", "layer_norm_tmp", "loss_fn"].contains(&module)
}

impl Rest {
    /// What a file with a decoder should hold beside the encoder; none if it has no decoder.
    pub fn of(source: &Source, a: &Architecture, bands: usize) -> Option<Self> {
        let of = |dict: &str, name: &str| Some(name.strip_prefix(dict)?.split_once('.')?.0.to_owned());
        let mut tasks: Vec<Task> = Vec::new();
        let mut decoder = false;
        for name in source.names() {
            decoder |= ["mask_token", "proj.", "decoder_dict.", "pred_dict."].iter().any(|p| name.starts_with(p));
            let named = of("pred_dict.", name).or_else(|| of("decoder_dict.", name));
            if let Some((name, kind)) = named.and_then(|n| modality(&n, bands).map(|kind| (n, kind)))
                && tasks.iter().all(|t| t.name != name)
            {
                tasks.push(Task { name, kind });
            }
        }
        if !decoder {
            return None;
        }
        let d = ["mask_token", "proj.bias"].iter().find_map(|n| source.get(n)).map_or(512, |e| e.data.len());
        let uncertainty = source.get(LOG_VARS).is_some();
        let mut wanted = Vec::new();
        let mut add = |from: &str, shape: Vec<usize>, name: String, to: Vec<usize>| {
            wanted.push(Wanted { from: from.to_owned(), shape, name, to, change: Change::Same });
        };
        let mut same = |from: &str, name: &str, shape: Vec<usize>| add(from, shape.clone(), name.to_owned(), shape);
        same("mask_token", "mask_token", vec![1, d, 1, 1]);
        same("proj.weight", "proj.weight", vec![d, a.embedding_dimension()]);
        same("proj.bias", "proj.bias", vec![d]);
        let patch = usize::from(a.patch_size);
        let mut image = false;
        for task in &tasks {
            let width = match task.kind {
                TaskKind::PixelRegression { channels: n, .. } | TaskKind::PixelClassification { classes: n } => {
                    patch * patch * n
                }
                TaskKind::ImageRegression { width: n }
                | TaskKind::ImageClassification { classes: n }
                | TaskKind::EmbeddingRegression { width: n } => {
                    image = true;
                    n
                }
            };
            let from = |part| format!("pred_dict.{}.{part}", task.name);
            same(&from("weight"), &format!("pred.{}.weight", task.name), vec![width, d]);
            same(&from("bias"), &format!("pred.{}.bias", task.name), vec![width]);
            for (part, shape) in block(d) {
                let from = format!("decoder_dict.{}.0.{part}", task.name);
                same(&from, &from, shape);
            }
        }
        if image {
            same("layer_norm_tmp.weight", "layer_norm_tmp.weight", vec![d]);
            same("layer_norm_tmp.bias", "layer_norm_tmp.bias", vec![d]);
        }
        if uncertainty {
            same(LOG_VARS, "log_vars", vec![tasks.len()]);
        }
        let config = MpMaeConfig { decoder_dim: d, uncertainty, ..MpMaeConfig::default() };
        Some(Self { tasks, config, wanted })
    }

    /// The whole from the tensors that were collected, in which the copies of the decoder block must be equal.
    pub fn tie(self, mut tensors: BTreeMap<String, Array>, architecture: Architecture, bands: usize) -> Result<Whole> {
        let d = self.config.decoder_dim;
        let first = &self.tasks.first().context("the model has a decoder, but predicts nothing")?.name;
        let mut different = Vec::new();
        for (part, _) in block(d) {
            let one =
                tensors.remove(&format!("decoder_dict.{first}.0.{part}")).context("a decoder tensor is missing")?;
            for task in &self.tasks[1..] {
                let name = format!("decoder_dict.{}.0.{part}", task.name);
                if tensors.remove(&name).is_none_or(|other| other != one) {
                    different.push(name);
                }
            }
            tensors.insert(format!("decoder.0.{part}"), one);
        }
        ensure!(
            different.is_empty(),
            "MMEarth's modalities share one decoder block, but {} tensors differ from those of {first}: {}",
            different.len(),
            different.join(", ")
        );
        // What a model without these has no use for, and what ours always has.
        let filled = |n: usize, v: f32| Array { shape: vec![n], data: vec![v; n] };
        tensors.entry("layer_norm_tmp.weight".into()).or_insert_with(|| filled(d, 1.0));
        tensors.entry("layer_norm_tmp.bias".into()).or_insert_with(|| filled(d, 0.0));
        tensors.entry("log_vars".into()).or_insert_with(|| filled(self.tasks.len(), 0.0));
        let decoders = self.tasks.len();
        Ok(Whole { tasks: self.tasks, config: self.config, parameters: tensors, decoders, architecture, bands })
    }
}

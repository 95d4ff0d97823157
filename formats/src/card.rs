//! The encoder's float weights: a `.safetensors` file whose metadata holds a model card.
//!
//! Tensor names are those of MMEarth's dense encoder (`initial_conv.0.weight`, `stages.0.1.pwconv1.weight`, `norm.bias`, ...); a patchify
//! stem is `stem.0` and `stem.1`, without `initial_conv`.
//! The card is JSON under the metadata key `nadir`; a file without one (from elsewhere) may have the card beside it as `NAME.card.json`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use nadir::model::{Architecture, Band, Bands, is_canonical_band};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Result, canonical_band, invalid, io, write_atomic};

/// The metadata key under which the card stands.
pub const CARD_KEY: &str = "nadir";

/// What an encoder's weights are: everything needed to feed it and to name its embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// Name of the model, for instance `zepto-rgb`; at most 32 bytes.
    pub name: String,
    /// Its shape.
    pub architecture: Architecture,
    /// Its input, in order.
    pub bands: Vec<BandCard>,
    /// Names the embedding space: embeddings may be compared only within one. At most 32 bytes.
    pub embedding_space: String,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// One band of a [`ModelCard`]; see [`Band`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandCard {
    /// Canonical name, at most 8 bytes.
    pub name: String,
    /// What a stored value counts, at most 24 bytes.
    pub unit: String,
    /// Subtracted from the stored value.
    pub mean: f32,
    /// Divides the difference.
    pub std: f32,
    /// Stored value that means "no data".
    #[serde(default)]
    pub no_data: Option<f32>,
    /// Stored value at and above which the sensor is saturated.
    #[serde(default)]
    pub saturation: Option<f32>,
}

/// Who made a model, from what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Program and version.
    pub made_by: String,
    /// The data, for instance `EuroSAT RGB, 9690 tiles`.
    pub data: String,
    /// How: recipe, epochs, seed, teacher.
    pub recipe: String,
    /// Licence of the weights.
    pub licence: String,
}

/// An f32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Vec<f32>,
}

/// An encoder's weights and card.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    /// The card.
    pub card: ModelCard,
    /// All tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl ModelCard {
    /// The bands as the runtime holds them, their names in canonical spelling.
    ///
    /// # Errors
    /// If there is none or too many, or a name, unit, mean or standard deviation is not possible; the text names the band.
    pub fn bands(&self) -> Result<Bands, String> {
        let mut bands = Bands::new();
        for band in &self.bands {
            let text = |what: &str, s: &str, max| format!("band {what} {s:?} is longer than {max} bytes");
            let name = canonical_band(&band.name);
            if name.is_empty() || !is_canonical_band(&name) {
                return Err(format!("band name {name:?} must be visible ASCII characters without comma"));
            }
            if bands.iter().any(|b: &Band| b.name == name.as_str()) {
                return Err(format!("band {name} is named twice"));
            }
            if !(band.mean.is_finite() && band.std.is_finite() && band.std > 0.0) {
                return Err(format!("band {name}: mean {} or std {} is not possible", band.mean, band.std));
            }
            let band = Band {
                name: name.as_str().try_into().map_err(|_| text("name", &name, 8))?,
                unit: band.unit.as_str().try_into().map_err(|_| text("unit", &band.unit, 24))?,
                mean: band.mean,
                std: band.std,
                no_data: band.no_data,
                saturation: band.saturation,
            };
            bands.push(band).map_err(|_| format!("more than {} bands", nadir::model::MAX_BANDS))?;
        }
        if bands.is_empty() { Err("no band".into()) } else { Ok(bands) }
    }

    /// The names of the bands, in order.
    pub fn band_names(&self) -> Vec<&str> {
        self.bands.iter().map(|b| b.name.as_str()).collect()
    }

    /// Checks the architecture, the bands, and the lengths of the names.
    ///
    /// # Errors
    /// The first that is beyond its limits.
    pub fn validate(&self) -> Result<(), String> {
        self.architecture.validate().map_err(|e| e.to_string())?;
        self.bands()?;
        self.architecture.validate_bands(self.bands.len()).map_err(|e| e.to_string())?;
        for (what, text) in [("name", &self.name), ("embedding_space", &self.embedding_space)] {
            if text.is_empty() || text.len() > 32 {
                return Err(format!("{what} {text:?} must have 1 to 32 bytes"));
            }
        }
        Ok(())
    }
}

impl Encoder {
    /// Reads the weights and the card, from the file itself or from `NAME.card.json` beside it.
    ///
    /// Every tensor of the architecture must be there with its shape, finite, and no other.
    ///
    /// # Errors
    /// If not, or if the file cannot be read, or there is no good card.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(io(path))?;
        let bad = |reason: String| invalid(path, reason);
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| bad(format!("is not a safetensors file: {e}")))?;
        let beside = path.with_extension("card.json");
        let embedded = header.metadata().as_ref().and_then(|m| m.get(CARD_KEY)).cloned();
        let json = match embedded {
            Some(json) => json,
            None if beside.exists() => std::fs::read_to_string(&beside).map_err(io(&beside))?,
            None => {
                return Err(bad(format!(
                    "has no model card (metadata key `{CARD_KEY}`, or the file {})",
                    beside.display()
                )));
            }
        };
        let card: ModelCard = serde_json::from_str(&json).map_err(|e| bad(format!("has a bad model card: {e}")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("is not a safetensors file: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(bad(format!("tensor {name} has type {:?}, expected F32", view.dtype())));
            }
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data });
        }
        Self::new(card, tensors).map_err(bad)
    }

    /// An encoder of these weights.
    ///
    /// # Errors
    /// If the card is not possible, or the tensors are not those of its architecture, finite, each with its shape, and no other.
    pub fn new(card: ModelCard, tensors: BTreeMap<String, Tensor>) -> Result<Self, String> {
        card.validate().map_err(|e| format!("has a bad model card: {e}"))?;
        for (name, tensor) in &tensors {
            if let Some(at) = tensor.data.iter().position(|v| !v.is_finite()) {
                return Err(format!("tensor {name} holds {} at element {at}", tensor.data[at]));
            }
        }
        let encoder = Self { card, tensors };
        encoder.check_tensors()?;
        Ok(encoder)
    }

    /// Writes the weights with the card inside, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string(&self.card).map_err(|e| invalid(path, e.to_string()))?;
        let data: BTreeMap<_, Vec<u8>> =
            self.tensors.iter().map(|(k, t)| (k, t.data.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
        let views = self
            .tensors
            .iter()
            .map(|(k, t)| Ok((k, TensorView::new(Dtype::F32, t.shape.clone(), &data[k])?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| invalid(path, e.to_string()))?;
        // One entry alone: several are written in an order that changes from run to run, and with it the file's bytes.
        let metadata = HashMap::from([(CARD_KEY.to_owned(), json)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| invalid(path, e.to_string()))?;
        write_atomic(path, &bytes)
    }

    /// 16 hexadecimal digits that name the embedding space of these weights: a hash over all tensors.
    pub fn space_of_weights(&self) -> String {
        Self::space_of(&self.tensors)
    }

    /// The same of tensors that have no card yet.
    pub fn space_of(tensors: &BTreeMap<String, Tensor>) -> String {
        let mut hash = Sha256::new();
        for (name, tensor) in tensors {
            hash.update(name.as_bytes());
            for v in &tensor.data {
                hash.update(v.to_le_bytes());
            }
        }
        hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The tensor `name`; it is there, because reading checked it.
    ///
    /// # Panics
    /// If `name` is none of [`expected_shapes`]'s.
    pub fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn check_tensors(&self) -> Result<(), String> {
        let expected = expected_shapes(&self.card.architecture, self.card.bands.len());
        for (name, shape) in &expected {
            match self.tensors.get(name) {
                None => return Err(format!("tensor {name} is missing")),
                Some(t) if t.shape != *shape => {
                    return Err(format!("tensor {name} has shape {:?}, the card asks for {shape:?}", t.shape));
                }
                Some(_) => {}
            }
        }
        match self.tensors.keys().find(|name| !expected.contains_key(*name)) {
            Some(name) => Err(format!("tensor {name} is unexpected")),
            None => Ok(()),
        }
    }
}

/// Name and shape of every tensor of an encoder.
pub fn expected_shapes(a: &Architecture, bands: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut pair = |name: String, weight: Vec<usize>| {
        shapes.insert(format!("{name}.bias"), vec![weight[0]]);
        shapes.insert(format!("{name}.weight"), weight);
    };
    let (d0, k) = (a.dim(0), a.stem_stride());
    if a.is_patchify() {
        pair("stem.0".into(), vec![d0, bands, k, k]);
    } else {
        pair("initial_conv.0".into(), vec![d0, bands, 3, 3]);
        pair("initial_conv.1".into(), vec![d0]);
        pair("stem.0".into(), vec![d0, 1, k, k]);
    }
    pair("stem.1".into(), vec![d0]);
    for stage in 0..4 {
        let d = a.dim(stage);
        if stage > 0 {
            let before = a.dim(stage - 1);
            pair(format!("downsample_layers.{}.0", stage - 1), vec![before]);
            pair(format!("downsample_layers.{}.1", stage - 1), vec![d, before, 2, 2]);
        }
        for block in 0..a.depths[stage] {
            let name = format!("stages.{stage}.{block}");
            pair(format!("{name}.dwconv"), vec![d, 1, 7, 7]);
            pair(format!("{name}.norm"), vec![d]);
            pair(format!("{name}.pwconv1"), vec![4 * d, d]);
            pair(format!("{name}.pwconv2"), vec![d, 4 * d]);
        }
    }
    pair("norm".into(), vec![a.embedding_dimension()]);
    for stage in 0..4 {
        for block in 0..a.depths[stage] {
            for part in ["gamma", "beta"] {
                shapes.insert(format!("stages.{stage}.{block}.grn.{part}"), vec![1, 1, 1, 4 * a.dim(stage)]);
            }
        }
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Encoder {
        let architecture = Architecture::named("yocto", 64, 16).unwrap();
        let band = |name: &str| BandCard {
            name: name.into(),
            unit: "grey level".into(),
            mean: 90.0,
            std: 40.0,
            no_data: Some(0.0),
            saturation: Some(255.0),
        };
        let card = ModelCard {
            name: "yocto-rgb".into(),
            architecture,
            bands: ["B4", "B3", "B2"].map(band).into(),
            embedding_space: "0123456789abcdef".into(),
            provenance: Provenance::default(),
        };
        let tensors = expected_shapes(&architecture, 3)
            .into_iter()
            .map(|(k, shape)| {
                let n = shape.iter().product();
                (k, Tensor { shape, data: (0..n).map(|i| (i % 7) as f32 * 0.01).collect() })
            })
            .collect();
        Encoder { card, tensors }
    }

    #[test]
    fn encoders_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.safetensors");
        let written = encoder();
        assert_eq!(
            written.tensors.values().map(|t| t.data.len() as u64).sum::<u64>(),
            written.card.architecture.parameters(3)
        );
        written.write(&path).unwrap();
        assert_eq!(Encoder::read(&path).unwrap(), written);
    }

    #[test]
    fn bad_encoders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.safetensors");
        let refuse = |change: &dyn Fn(&mut Encoder), part: &str| {
            let mut bad = encoder();
            change(&mut bad);
            bad.write(&path).unwrap();
            let error = Encoder::read(&path).unwrap_err().to_string();
            assert!(error.contains("e.safetensors") && error.contains(part), "{error}");
        };
        refuse(&|e| drop(e.tensors.remove("norm.bias")), "norm.bias is missing");
        refuse(&|e| e.card.architecture.dims[0] = 8, "has shape [16], the card asks for [8]");
        refuse(&|e| e.card.bands[1].name = "B04".into(), "B4 is named twice");
        refuse(&|e| e.card.bands[1].name = "B3,B2".into(), "band name \"B3,B2\" must be");
        refuse(&|e| e.card.bands[1].name = " ".into(), "band name \"\" must be");
        refuse(&|e| e.card.bands[0].std = 0.0, "band B4");
        refuse(&|e| e.tensors.get_mut("norm.bias").unwrap().data[3] = f32::NAN, "norm.bias holds NaN at element 3");
        refuse(&|e| e.card.architecture.patch_size = 9, "patch size 9");
        std::fs::write(&path, b"not a model").unwrap();
        assert!(Encoder::read(&path).unwrap_err().to_string().contains("not a safetensors file"));
    }
}

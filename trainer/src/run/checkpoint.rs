//! `checkpoint.safetensors`: all that a run needs to go on bit for bit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use nadir_formats::Tensor as Array;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

/// Metadata key of the position.
const KEY: &str = "nadir-training";
const PARAMETERS: &str = "parameters.";
const OPTIMISER: &str = "optimiser.";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Sums over the steps of the open interval.
    pub interval: Sums,
    /// Sums over the steps of the open epoch.
    pub epoch: Sums,
}

/// Sums of losses; as bits, since the mean of a resumed span must be that of an uninterrupted one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Number of steps.
    pub steps: u64,
    /// Number of batches; several make a step where gradients are accumulated.
    pub batches: u64,
    gradient_norm: u64,
    loss: u64,
    tasks: BTreeMap<String, u64>,
}

impl Sums {
    /// Adds one batch's losses.
    pub fn add(&mut self, loss: f32, tasks: &[(String, f32)]) {
        self.batches += 1;
        add(&mut self.loss, loss.into());
        for (name, value) in tasks {
            add(self.tasks.entry(name.clone()).or_default(), f64::from(*value));
        }
    }

    /// Ends a step, whose gradient had this norm.
    pub fn end_step(&mut self, gradient_norm: f64) {
        self.steps += 1;
        add(&mut self.gradient_norm, gradient_norm);
    }

    /// Mean norm of the gradients.
    pub fn gradient_norm(&self) -> f64 {
        f64::from_bits(self.gradient_norm) / self.steps.max(1) as f64
    }

    /// Mean loss, and every task's.
    pub fn means(&self) -> (f64, BTreeMap<String, f64>) {
        let mean = |bits: u64| f64::from_bits(bits) / self.batches.max(1) as f64;
        (mean(self.loss), self.tasks.iter().map(|(name, bits)| (name.clone(), mean(*bits))).collect())
    }
}

fn add(bits: &mut u64, value: f64) {
    *bits = (f64::from_bits(*bits) + value).to_bits();
}

/// A run's state between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// How far it is.
    pub position: Position,
    /// All parameters.
    pub parameters: BTreeMap<String, Array>,
    /// The optimiser's state.
    pub optimiser: BTreeMap<String, Array>,
}

impl Checkpoint {
    /// Writes the file whole. Fails if a parameter is not finite, leaving the file as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        for (name, array) in &self.parameters {
            ensure!(
                array.data.iter().all(|v| v.is_finite()),
                "parameter {name} is no longer finite: lower the learning rate"
            );
        }
        let parts = [(PARAMETERS, &self.parameters), (OPTIMISER, &self.optimiser)];
        let bytes: Vec<(String, &[usize], Vec<u8>)> = parts
            .into_iter()
            .flat_map(|(prefix, arrays)| arrays.iter().map(move |(name, array)| (format!("{prefix}{name}"), array)))
            .map(|(name, array)| (name, &array.shape[..], array.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([(KEY.to_owned(), serde_json::to_string(&self.position)?)]);
        Ok(nadir_formats::write_atomic(path, &safetensors::serialize(views, Some(metadata))?)?)
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let context = || format!("{}: is not a checkpoint", path.display());
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(context)?;
        let position = header.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| anyhow!(context()))?;
        let position = serde_json::from_str(position).with_context(context)?;
        let mut checkpoint = Self { position, parameters: BTreeMap::new(), optimiser: BTreeMap::new() };
        for (name, view) in SafeTensors::deserialize(&bytes).with_context(context)?.iter() {
            let (part, name) = if let Some(name) = name.strip_prefix(PARAMETERS) {
                (&mut checkpoint.parameters, name)
            } else {
                (&mut checkpoint.optimiser, name.strip_prefix(OPTIMISER).ok_or_else(|| anyhow!(context()))?)
            };
            ensure!(view.dtype() == Dtype::F32, context());
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            part.insert(name.to_owned(), Array { shape: view.shape().to_vec(), data });
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let mut sums = Sums::default();
        sums.add(0.1, &[("tiles".into(), 0.3)]);
        sums.add(0.2, &[("tiles".into(), 0.7)]);
        sums.end_step(0.3);
        let array = |v: f32| Array { shape: vec![2, 1], data: vec![v, -v] };
        let mut checkpoint = Checkpoint {
            position: Position { step: 7, interval: sums.clone(), epoch: Sums::default() },
            parameters: BTreeMap::from([("a.weight".into(), array(1.5))]),
            optimiser: BTreeMap::from([
                ("a.weight.mean".into(), array(1e-30)),
                ("steps".into(), Array { shape: vec![], data: vec![7.0] }),
            ]),
        };
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
        assert_eq!(sums.gradient_norm(), 0.3);
        assert!((sums.means().0 - 0.15).abs() < 1e-7 && (sums.means().1["tiles"] - 0.5).abs() < 1e-7);
        checkpoint.parameters.insert("b".into(), array(f32::NAN));
        assert!(checkpoint.write(&path).unwrap_err().to_string().contains("parameter b"));
        assert!(Checkpoint::read(&path).is_ok(), "the good checkpoint is gone");
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(format!("{:#}", Checkpoint::read(&path).unwrap_err()).contains("not a checkpoint"));
        }
    }
}

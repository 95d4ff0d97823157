//! What a student predicts besides: values per tile, linearly from its embedding.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::data::{ImageTarget, ImageValues};
use crate::loss::Truth;
use crate::ops;
use crate::params::Params;

/// The tasks and how much they count.
#[derive(Clone, Debug)]
pub struct Pretext {
    targets: Vec<ImageTarget>,
    weight: f64,
}

impl Pretext {
    /// The tasks of `targets`, the mean of whose losses counts `weight`; one row a tile.
    ///
    /// # Errors
    /// If one is named as a loss of distillation.
    pub fn new(targets: Vec<ImageTarget>, weight: f64) -> anyhow::Result<Self> {
        for ImageTarget { name, .. } in &targets {
            let own = ["feature", "relation"]
                .iter()
                .any(|loss| name.strip_prefix(loss).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
            anyhow::ensure!(!own, "{name} is the name of a loss of distillation: no column may be named so");
        }
        Ok(Self { targets, weight })
    }

    /// How much the mean of the losses counts.
    pub(super) fn weight(&self) -> f64 {
        self.weight
    }

    /// Names and shapes of the heads on an embedding of `d` dimensions.
    pub(super) fn shapes(&self, d: usize) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = BTreeMap::new();
        for target in &self.targets {
            let width = match target.values {
                ImageValues::Values { width, .. } => width,
                ImageValues::Classes { count, .. } => count,
            };
            shapes.insert(format!("pred.{}.weight", target.name), vec![width, d]);
            shapes.insert(format!("pred.{}.bias", target.name), vec![width]);
        }
        shapes
    }

    /// The mean of the tasks' losses for the tiles `rows`, and each task's own; one of which nothing is known is 0 and not in the mean.
    pub(super) fn loss(
        &self,
        embedding: &Tensor,
        rows: &[usize],
        params: &Params,
    ) -> Result<(Option<Tensor>, Vec<(String, f32)>)> {
        let mut total: Option<Tensor> = None;
        let (mut known, mut tasks) = (0, Vec::new());
        for target in &self.targets {
            let truth = match &target.values {
                ImageValues::Values { width, data } => {
                    let values = rows.iter().flat_map(|i| &data[i * width..(i + 1) * width]).copied().collect();
                    Truth::of_values(values, *width, embedding.device())?
                }
                ImageValues::Classes { count, data } => {
                    let labels: Vec<i64> = rows.iter().map(|i| data[*i]).collect();
                    Truth::of_classes(&labels, *count, &target.name)?
                }
            };
            let get = |part: &str| params.get(&format!("pred.{}.{part}", target.name));
            let loss = truth.loss(|| ops::linear(embedding, get("weight"), get("bias")))?;
            let value = loss.as_ref().map_or(Ok(0.0), Tensor::to_scalar)?;
            tasks.push((target.name.clone(), value));
            if let Some(loss) = loss {
                known += 1;
                total = Some(match total {
                    Some(total) => (total + loss)?,
                    None => loss,
                });
            }
        }
        Ok((total.map(|total| total * (1.0 / f64::from(known.max(1)))).transpose()?, tasks))
    }
}

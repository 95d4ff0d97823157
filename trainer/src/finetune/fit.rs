//! The loop of fine-tuning: epochs of steps of accumulated batches.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use nadir_formats::{BandCard, Tiles};

use super::net::Net;
use super::path::Dropped;
use super::{Recipe, group};
use crate::data::{Labels, Sampler, Stream, Symmetry, generator, input};
use crate::optim::{AdamW, AdamWConfig};
use crate::run::{Checkpoint, Gradients, Metrics, Outcome, Position, Progress, Run, Span, Sums, stopping};

/// What is trained on.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    /// The tiles.
    pub tiles: &'a Tiles,
    /// Their bands' normalisation.
    pub bands: &'a [BandCard],
    /// Their labels.
    pub labels: &'a Labels,
    /// Those to train on.
    pub rows: &'a [usize],
}

/// Trains `net` by `recipe`, which [`fitted`](Recipe::fitted) to the number of rows. With a run it goes on from its
/// checkpoint, writes one each epoch, and stops when a signal asks for it; a step depends on nothing but seed and number.
///
/// # Errors
/// If the loss is no longer finite, or the run's files cannot be read or written.
pub fn fit(net: &Net, examples: Examples, recipe: &Recipe, run: Option<&Run>, what: &str) -> Result<Outcome> {
    let per_epoch = recipe.steps_per_epoch(examples.rows.len());
    let total = recipe.epochs * per_epoch;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: recipe.weight_decay };
    let architecture = net.encoder().architecture();
    let joins_later = net.pixels() || recipe.frozen_epochs > 0;
    let groups = |name: &str, rank: usize| group(architecture, recipe.layer_decay, joins_later, name, rank);
    let mut optimiser = AdamW::with_groups(net.params(), config, groups)?;
    let mut position = Position::default();
    if let Some(run) = run {
        position = restore(run, net, &mut optimiser)?;
        run.rewind(position.step)?;
    }
    let mut sampler = Sampler::new(examples.rows.len(), recipe.batch, recipe.seed, recipe.flips);
    let mut progress = Progress::new(what, "steps", position.step, total);
    let mut clock = (Instant::now(), 0);
    while position.step < total {
        let step = position.step;
        let (epoch, window) = (step / per_epoch, step % per_epoch);
        let batches = sampler.steps_per_epoch();
        let first = epoch * batches + window * recipe.accumulate as u64;
        let lr = recipe.lr_at(first as f64 / batches as f64);
        let mut gradients = Gradients::default();
        let mut loss = 0f32;
        for at in first..first + recipe.accumulate as u64 {
            let draws: Vec<_> = sampler.draw(at).into_iter().map(|(i, s)| (examples.rows[i], s)).collect();
            let Some(part) = batch_loss(net, examples, &draws, recipe, at, epoch < recipe.frozen_epochs)? else {
                continue;
            };
            loss = part.to_scalar()?;
            let (place, remedy) = (format!("at step {step} (epoch {})", epoch + 1), "lower the learning rate");
            if !loss.is_finite() {
                bail!("the loss is {loss} {place}: {remedy}");
            }
            position.epoch.add(loss, &[]);
            if let Some(name) = gradients.add(net.params(), part.backward()?)? {
                bail!("the gradient of {name} is not finite {place}: {remedy}");
            }
        }
        let (gradients, norm) = gradients.mean(net.params())?;
        optimiser.step(&gradients, lr)?;
        position.epoch.end_step(norm);
        position.step += 1;
        clock.1 += (recipe.batch * recipe.accumulate) as u64;
        progress.at(position.step, &format!("epoch {}/{}, loss {loss:.4}", epoch + 1, recipe.epochs));
        let Some(run) = run else { continue };
        let (epoch_done, stop) = (position.step.is_multiple_of(per_epoch), stopping());
        if epoch_done {
            let (loss, _) = position.epoch.means();
            let tiles_per_second = clock.1 as f64 / clock.0.elapsed().as_secs_f64().max(1e-9);
            let (kind, step) = (Span::Epoch, position.step);
            let tasks = [("labels".to_owned(), loss)].into();
            let (epoch, gradient_norm) = ((epoch + 1) as f64, position.epoch.gradient_norm());
            run.log(&Metrics { kind, epoch, step, loss, tasks, gradient_norm, lr, tiles_per_second })?;
            position.epoch = Sums::default();
            clock = (Instant::now(), 0);
            run.draw()?;
        }
        if epoch_done || stop {
            let (parameters, optimiser) = (net.params().export()?, optimiser.export_state()?);
            Checkpoint { position: position.clone(), parameters, optimiser }.write(&run.checkpoint_path())?;
        }
        if stop && position.step < total {
            return Ok(Outcome::Interrupted(position.step));
        }
    }
    Ok(Outcome::Complete)
}

/// The loss of the drawn tiles in the `at`-th batch; nothing if no label is known.
fn batch_loss(
    net: &Net,
    examples: Examples,
    draws: &[(usize, Symmetry)],
    recipe: &Recipe,
    at: u64,
    frozen: bool,
) -> Result<Option<Tensor>> {
    let x = input(examples.tiles, examples.bands, draws, net.encoder().device())?;
    let mut random = generator(recipe.seed, Stream::Paths, at);
    let architecture = net.encoder().architecture();
    let dropped =
        (recipe.drop_path > 0.0).then(|| Dropped::draw(architecture, draws.len(), recipe.drop_path, &mut random));
    let output = net.forward(&x, dropped.as_ref(), frozen)?;
    net.loss(&output, examples.labels, examples.tiles.len(), draws, recipe.smoothing)
}

/// Loads the run's checkpoint, if it has one.
fn restore(run: &Run, net: &Net, optimiser: &mut AdamW) -> Result<Position> {
    let path = run.checkpoint_path();
    if !path.exists() {
        return Ok(Position::default());
    }
    let checkpoint = Checkpoint::read(&path)?;
    net.params().load(&checkpoint.parameters).with_context(|| path.display().to_string())?;
    optimiser.load_state(&checkpoint.optimiser).with_context(|| path.display().to_string())?;
    Ok(checkpoint.position)
}

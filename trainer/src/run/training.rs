//! The loop over steps, shared by pretraining and distillation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::checkpoint::{Checkpoint, Position, Sums};
use super::{Metrics, Progress, Run, Span};
use crate::data::{Sampler, Symmetry};
use crate::mpmae::Losses;
use crate::optim::{AdamW, AdamWConfig, learning_rate};
use crate::params::Params;

/// Set by the first interruption; the loop then saves a checkpoint and ends.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C or termination signal makes [`train`] save a checkpoint and return; a second one ends
/// the program at once.
pub fn stop_on_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("trainer: stopping after this step; once more to stop at once");
    })
    .context("cannot listen to signals")
}

/// Whether a signal asked for an end.
pub(crate) fn stopping() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// What is trained.
pub trait Objective {
    /// All trainable parameters.
    fn params(&self) -> &Params;

    /// The losses of step `step` on the drawn tiles.
    fn loss(&self, step: u64, draws: &[(usize, Symmetry)]) -> Result<Losses>;
}

/// How long and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Epochs in all.
    pub epochs: u64,
    /// Epochs over which the learning rate rises.
    pub warmup: f64,
    /// Its highest value.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Logged intervals in an epoch.
    pub logs_per_epoch: u64,
}

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Complete,
    /// A signal stopped it; the checkpoint holds this many steps.
    Interrupted(u64),
}

/// Trains from the run's checkpoint, or from the start if there is none, to the end of the schedule.
///
/// Fails if the loss is no longer a finite number; the last checkpoint then stays.
pub fn train(run: &Run, schedule: &Schedule, sampler: &mut Sampler, objective: &dyn Objective) -> Result<Outcome> {
    let per_epoch = sampler.steps_per_epoch();
    let total = schedule.epochs * per_epoch;
    let warmup = (schedule.warmup * per_epoch as f64).round() as u64;
    let interval = per_epoch.div_ceil(schedule.logs_per_epoch.max(1));
    let config = AdamWConfig { weight_decay: schedule.weight_decay, ..AdamWConfig::default() };
    let mut optimiser = AdamW::new(objective.params(), config)?;
    let mut position = restore(run, objective, &mut optimiser)?;
    run.rewind(position.step)?;

    let batch = sampler.batch() as u64;
    let mut progress = Progress::new("training", "tiles", position.step * batch, total * batch);
    let mut clocks = [Clock::start(); 2];
    while position.step < total {
        let step = position.step;
        let lr = learning_rate(step, total, warmup, schedule.lr);
        let losses = objective.loss(step, &sampler.draw(step))?;
        let loss: f32 = losses.total.to_scalar()?;
        if !loss.is_finite() {
            let epoch = step / per_epoch + 1;
            bail!(
                "the loss is {loss} at step {step} (epoch {epoch}): lower --lr; the last checkpoint is {}",
                run.checkpoint_path().display()
            );
        }
        optimiser.backward_step(&losses.total, lr)?;
        position.step += 1;
        let spans = [&mut position.interval, &mut position.epoch];
        for (sums, clock) in spans.into_iter().zip(&mut clocks) {
            sums.add(loss, &losses.tasks);
            clock.tiles += batch;
        }
        let epoch = position.step as f64 / per_epoch as f64;
        progress.at(position.step * batch, &format!("epoch {epoch:.2}/{}, loss {loss:.4}", schedule.epochs));

        let at = position.step;
        let epoch_done = at.is_multiple_of(per_epoch);
        if epoch_done || (at % per_epoch).is_multiple_of(interval) {
            log(run, Span::Interval, at, epoch, lr, &mut position.interval, &mut clocks[0])?;
        }
        if epoch_done {
            let metrics = log(run, Span::Epoch, at, epoch, lr, &mut position.epoch, &mut clocks[1])?;
            progress.say(&summary(&metrics, schedule.epochs));
        }
        let stop = STOP.load(Ordering::SeqCst);
        if epoch_done || stop {
            save(run, objective, &optimiser, &position)?;
            run.draw()?;
        }
        if stop && at < total {
            return Ok(Outcome::Interrupted(at));
        }
    }
    Ok(Outcome::Complete)
}

/// Loads the run's checkpoint, if it has one.
fn restore(run: &Run, objective: &dyn Objective, optimiser: &mut AdamW) -> Result<Position> {
    let path = run.checkpoint_path();
    if !path.exists() {
        return Ok(Position::default());
    }
    let checkpoint = Checkpoint::read(&path)?;
    objective.params().load(&checkpoint.parameters).with_context(|| path.display().to_string())?;
    optimiser.load_state(&checkpoint.optimiser).with_context(|| path.display().to_string())?;
    Ok(checkpoint.position)
}

fn save(run: &Run, objective: &dyn Objective, optimiser: &AdamW, position: &Position) -> Result<()> {
    let (parameters, optimiser) = (objective.params().export()?, optimiser.export_state()?);
    Checkpoint { position: position.clone(), parameters, optimiser }.write(&run.checkpoint_path())
}

/// Wall time and tiles of the open span.
#[derive(Clone, Copy)]
struct Clock {
    since: Instant,
    tiles: u64,
}

impl Clock {
    fn start() -> Self {
        Self { since: Instant::now(), tiles: 0 }
    }
}

/// Writes the means of a span and opens the next.
fn log(run: &Run, kind: Span, step: u64, epoch: f64, lr: f64, sums: &mut Sums, clock: &mut Clock) -> Result<Metrics> {
    let (loss, tasks) = sums.means();
    let tiles_per_second = clock.tiles as f64 / clock.since.elapsed().as_secs_f64().max(1e-9);
    let metrics = Metrics { kind, epoch, step, loss, tasks, lr, tiles_per_second };
    run.log(&metrics)?;
    *sums = Sums::default();
    *clock = Clock::start();
    Ok(metrics)
}

fn summary(metrics: &Metrics, epochs: u64) -> String {
    let tasks: Vec<_> = metrics.tasks.iter().map(|(name, loss)| format!("{name} {loss:.3}")).collect();
    let rate = metrics.tiles_per_second;
    format!("epoch {}/{epochs}: loss {:.4} ({}), {rate:.0} tiles/s", metrics.epoch, metrics.loss, tasks.join(", "))
}

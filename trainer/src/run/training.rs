//! The loop over steps, shared by pretraining and distillation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Tensor;

use super::checkpoint::{Checkpoint, Position, Sums};
use super::gradients::Gradients;
use super::{Metrics, Progress, Run, Span};
use crate::data::{Sampler, Symmetry};
use crate::mpmae::Losses;
use crate::optim::{AdamW, AdamWConfig, learning_rate};
use crate::parallel::Group;
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

/// Ends the program if a signal asked for it, in work that a resumed run does again.
pub(crate) fn leave_if_asked(what: &str) {
    if stopping() {
        eprintln!("trainer: stopped at {what}; continue with --resume");
        std::process::exit(130);
    }
}

/// What is trained.
pub trait Objective {
    /// All trainable parameters.
    fn params(&self) -> &Params;

    /// The losses of batch `number` (from 0, over all epochs; a step is one, or several whose gradients are averaged) on
    /// the drawn tiles.
    fn loss(&self, number: u64, draws: &[(usize, Symmetry)]) -> Result<Losses>;

    /// The processes among which [`loss`](Self::loss) and its gradients are parts; this one alone by default.
    fn group(&self) -> &Group {
        &Group::ALONE
    }

    /// A tile in words, as an error names it.
    fn tile(&self, index: usize) -> String {
        index.to_string()
    }
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
    /// Time after which a checkpoint is written within an epoch.
    pub checkpoint_every: Duration,
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
/// Fails if a loss or a gradient is no longer finite; the last checkpoint then stays.
pub fn train(run: &Run, schedule: &Schedule, sampler: &mut Sampler, objective: &dyn Objective) -> Result<Outcome> {
    let per_epoch = sampler.steps_per_epoch();
    let total = schedule.epochs * per_epoch;
    let warmup = (schedule.warmup * per_epoch as f64).round() as u64;
    let interval = per_epoch.div_ceil(schedule.logs_per_epoch.max(1));
    let config = AdamWConfig { weight_decay: schedule.weight_decay, ..AdamWConfig::default() };
    let mut optimiser = AdamW::new(objective.params(), config)?;
    let group = objective.group();
    let mut position = restore(run, objective, &mut optimiser)?;
    if group.leads() {
        run.rewind(position.step)?;
    }

    let batch = sampler.batch() as u64 * sampler.accumulate();
    let mut saved = Instant::now();
    let mut progress = Progress::new("training", "tiles", position.step * batch, total * batch);
    // All processes draw the lines; only the first one writes.
    let written = group.leads().then_some(run);
    let mut clocks = [Clock::start(); 2];
    while position.step < total {
        let step = position.step;
        let lr = learning_rate(step, total, warmup, schedule.lr);
        let Position { interval: of_interval, epoch: of_epoch, .. } = &mut position;
        let stepped = advance(sampler, objective, &mut optimiser, step, lr, |loss, tasks| {
            of_interval.add(loss, tasks);
            of_epoch.add(loss, tasks);
        });
        let (loss, norm) = stepped.with_context(|| match run.checkpoint_path() {
            path if path.exists() => format!("the last checkpoint is {}", path.display()),
            _ => "there is no checkpoint yet".to_owned(),
        })?;
        position.step += 1;
        let spans = [&mut position.interval, &mut position.epoch];
        for (sums, clock) in spans.into_iter().zip(&mut clocks) {
            sums.end_step(norm);
            clock.tiles += batch;
        }
        let epoch = position.step as f64 / per_epoch as f64;
        progress.at(position.step * batch, &format!("epoch {epoch:.2}/{}, loss {loss:.4}", schedule.epochs));

        let at = position.step;
        let epoch_done = at.is_multiple_of(per_epoch);
        if epoch_done || (at % per_epoch).is_multiple_of(interval) {
            log(written, Span::Interval, at, epoch, lr, &mut position.interval, &mut clocks[0])?;
        }
        if epoch_done {
            let metrics = log(written, Span::Epoch, at, epoch, lr, &mut position.epoch, &mut clocks[1])?;
            if group.leads() {
                progress.say(&summary(&metrics, schedule.epochs));
            }
        }
        // A signal may reach the processes at different steps: all stop when one has seen it.
        let mut signals = [f64::from(u8::from(STOP.load(Ordering::SeqCst)))];
        group.sum(&mut signals)?;
        let stop = signals[0] > 0.0;
        if epoch_done || stop || saved.elapsed() >= schedule.checkpoint_every {
            if group.leads() {
                save(run, objective, &optimiser, &position).context("cannot save, the checkpoint before stays")?;
                run.draw()?;
            }
            saved = Instant::now();
        }
        if stop && at < total {
            // A launcher ends the other processes when one is gone: none goes before the checkpoint is written.
            group.sum(&mut [0.0])?;
            return Ok(Outcome::Interrupted(at));
        }
    }
    Ok(Outcome::Complete)
}

/// One step: the gradients of its batches, averaged, and the optimiser's step along them. `each` gets the total and the
/// tasks' losses of every batch. Gives the mean total and the gradient's norm.
///
/// Fails if a loss or a gradient is not finite, naming the task or parameter, the step and the tiles.
fn advance(
    sampler: &mut Sampler,
    objective: &dyn Objective,
    optimiser: &mut AdamW,
    step: u64,
    lr: f64,
    mut each: impl FnMut(f32, &[(String, f32)]),
) -> Result<(f64, f64)> {
    let accumulate = sampler.accumulate();
    let epoch = step / sampler.steps_per_epoch() + 1;
    let (mut gradients, mut total) = (Gradients::default(), 0.0);
    for number in step * accumulate..(step + 1) * accumulate {
        let draws = sampler.draw(number);
        let place = |what: String| {
            let tiles: Vec<_> = draws.iter().map(|(tile, _)| objective.tile(*tile)).collect();
            let tiles = tiles.join(", ");
            anyhow!(
                "{what} at step {step} (epoch {epoch}); lower the learning rate, or look at its tiles: rows {tiles}"
            )
        };
        let group = objective.group();
        let losses = objective.loss(number, &draws)?;
        let (loss, tasks) = sums(group, &losses)?;
        if let Some((task, value)) = tasks.iter().find(|(_, value)| !value.is_finite()) {
            return Err(place(format!("the loss of {task} is {value}")));
        }
        if !loss.is_finite() {
            return Err(place(format!("the weighted sum of losses is {loss}")));
        }
        if let Some(parameter) = gradients.add(objective.params(), losses.total.backward()?)? {
            return Err(place(format!("the gradient of parameter {parameter} is not finite")));
        }
        each(loss, &tasks);
        total += f64::from(loss) / accumulate as f64;
    }
    gradients.gather(objective.params(), objective.group())?;
    let (mean, norm) = gradients.mean(objective.params())?;
    optimiser.step(&mean, lr)?;
    Ok((total, norm))
}

/// Total and tasks' losses over the group.
fn sums(group: &Group, losses: &Losses) -> Result<(f32, Vec<(String, f32)>)> {
    let total: f32 = losses.total.to_scalar()?;
    let mut all: Vec<f64> = losses.tasks.iter().map(|(_, value)| f64::from(*value)).collect();
    all.push(total.into());
    group.sum(&mut all)?;
    let tasks = losses.tasks.iter().zip(&all).map(|((name, _), value)| (name.clone(), *value as f32)).collect();
    Ok((all[all.len() - 1] as f32, tasks))
}

/// Seconds that a step takes, after a first one that is not counted; at least `steps` steps. Writes nothing, but the
/// parameters change.
pub fn measure(schedule: &Schedule, sampler: &mut Sampler, objective: &dyn Objective, steps: u64) -> Result<f64> {
    let config = AdamWConfig { weight_decay: schedule.weight_decay, ..AdamWConfig::default() };
    let mut optimiser = AdamW::new(objective.params(), config)?;
    let mut start = Instant::now();
    for step in 0..=steps {
        advance(sampler, objective, &mut optimiser, step, schedule.lr / 1e3, |_, _| {})?;
        if step == 0 {
            start = Instant::now();
        }
    }
    Ok(start.elapsed().as_secs_f64() / steps as f64)
}

/// Loads the run's checkpoint, if it has one. All processes of a group start as the first one.
fn restore(run: &Run, objective: &dyn Objective, optimiser: &mut AdamW) -> Result<Position> {
    let (path, group) = (run.checkpoint_path(), objective.group());
    let mut found = [f64::from(u8::from(path.exists() && group.leads()))];
    group.sum(&mut found)?;
    if found[0] == 0.0 {
        for (_, var) in objective.params().vars().filter(|_| group.size() > 1) {
            let mut values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            group.broadcast(&mut values)?;
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        return Ok(Position::default());
    }
    let checkpoint = Checkpoint::read(&path)?;
    // The step is below 2^24, as the optimiser's own counts are.
    let mut steps = vec![checkpoint.position.step as f32];
    group.broadcast(&mut steps)?;
    ensure!(
        steps[0] == checkpoint.position.step as f32,
        "{}: is at step {} here, at step {} for process 0",
        path.display(),
        checkpoint.position.step,
        steps[0]
    );
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

/// Writes the means of a span, if there is where to, and opens the next.
fn log(
    run: Option<&Run>,
    kind: Span,
    step: u64,
    epoch: f64,
    lr: f64,
    sums: &mut Sums,
    clock: &mut Clock,
) -> Result<Metrics> {
    let ((loss, tasks), gradient_norm) = (sums.means(), sums.gradient_norm());
    let tiles_per_second = clock.tiles as f64 / clock.since.elapsed().as_secs_f64().max(1e-9);
    let metrics = Metrics { kind, epoch, step, loss, tasks, gradient_norm, lr, tiles_per_second };
    if let Some(run) = run {
        run.log(&metrics)?;
    }
    *sums = Sums::default();
    *clock = Clock::start();
    Ok(metrics)
}

fn summary(metrics: &Metrics, epochs: u64) -> String {
    let tasks: Vec<_> = metrics.tasks.iter().map(|(name, loss)| format!("{name} {loss:.3}")).collect();
    let rate = metrics.tiles_per_second;
    format!("epoch {}/{epochs}: loss {:.4} ({}), {rate:.0} tiles/s", metrics.epoch, metrics.loss, tasks.join(", "))
}

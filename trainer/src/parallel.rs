//! Training on several devices: processes that each hold the whole model and do a part of every batch.
//!
//! What is added up so that two processes with half the batch each do exactly what one with all of it does:
//!
//! - MP-MAE's losses are means over what is known, and the parts of a batch know different amounts. So a task's loss in a
//!   process is its own mean times its share of all that is known in the batch ([`Group::shares`]); summed over the
//!   processes this is the mean over the batch.
//! - Uncertainty weighting, `exp(-s) L + s`, is linear in `L`; each process takes `s` divided by the number of processes.
//! - Gradients are then summed, not averaged ([`Group::sum`] over one flat tensor), and every process does the same step
//!   of the optimiser. The weights of process 0 are sent to all before the first step; a resumed run is read from the folder by
//!   each, which must be at the same step.
//!
//! Order, symmetries, crops and masks are drawn for the whole batch from seed and step in every process, which then takes
//! its part. With `--grn batch` the norms are over a process's part alone, as MMEarth's code has it; then a batch cut in
//! parts is not the same as a whole one. Nor is it with `--contrast`: each process draws views and masks of its own, and tells
//! apart those of its own part.
//!
//! Between GPUs NCCL does the sums (feature `nccl`), between CPUs an installed MPI (feature `mpi`).

mod environment;
#[cfg(feature = "mpi")]
mod message;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{Device, Tensor};

pub use environment::Place;

/// The processes that train one model together.
pub struct Group {
    rank: usize,
    size: usize,
    link: Link,
}

enum Link {
    Alone,
    #[cfg(feature = "mpi")]
    Mpi(message::World),
    #[cfg(feature = "nccl")]
    Nccl(nccl::Ring),
}

impl Group {
    /// One process by itself.
    pub const ALONE: Self = Self { rank: 0, size: 1, link: Link::Alone };

    /// The processes that a launcher started (see [`Place::find`]), with `device` this one's; one by itself if none did.
    ///
    /// # Errors
    /// If the launcher's variables are incomplete, this program is not built for several processes, or the others cannot
    /// be reached.
    pub fn join(place: Option<&Place>, device: &Device) -> Result<Self> {
        let Some(place) = place.filter(|place| place.size > 1) else { return Ok(Self::ALONE) };
        let (rank, size) = (place.rank, place.size);
        let link = if device.is_cuda() { Self::gpus(place, device)? } else { Self::cpus(place)? };
        Ok(Self { rank, size, link })
    }

    #[cfg(feature = "nccl")]
    fn gpus(place: &Place, device: &Device) -> Result<Link> {
        Ok(Link::Nccl(nccl::Ring::join(place, device)?))
    }

    #[cfg(not(feature = "nccl"))]
    fn gpus(place: &Place, _: &Device) -> Result<Link> {
        bail!("{} processes on GPUs: this program was built without NCCL (cargo feature nccl)", place.size)
    }

    #[cfg(feature = "mpi")]
    fn cpus(place: &Place) -> Result<Link> {
        Ok(Link::Mpi(message::World::join(place)?))
    }

    #[cfg(not(feature = "mpi"))]
    fn cpus(place: &Place) -> Result<Link> {
        bail!("{} processes on CPUs: this program was built without MPI (cargo feature mpi)", place.size)
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is process 0, the one that writes.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// This process's part of a batch of `n` tiles.
    ///
    /// # Errors
    /// If the tiles cannot be shared out evenly.
    pub fn part(&self, n: usize) -> Result<Range<usize>> {
        let size = self.size;
        ensure!(
            n.is_multiple_of(size),
            "a batch of {n} tiles cannot be shared evenly by {size} processes; see --batch"
        );
        Ok(self.rank * (n / size)..(self.rank + 1) * (n / size))
    }

    /// Adds `values` up over all processes; each gets the same sums.
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        match &self.link {
            Link::Alone => {}
            #[cfg(feature = "mpi")]
            Link::Mpi(world) => world.sum(values),
            #[cfg(feature = "nccl")]
            Link::Nccl(ring) => ring.sum(values)?,
        }
        let _ = values;
        Ok(())
    }

    /// Adds a flat f32 tensor up over all processes; each gets the same sums.
    pub fn sum_tensor(&self, flat: &Tensor) -> Result<Tensor> {
        match &self.link {
            Link::Alone => Ok(flat.clone()),
            #[cfg(feature = "mpi")]
            Link::Mpi(world) => {
                let mut values: Vec<f32> = flat.to_vec1()?;
                world.sum(&mut values);
                Ok(Tensor::from_vec(values, flat.shape(), flat.device())?)
            }
            #[cfg(feature = "nccl")]
            Link::Nccl(ring) => ring.sum_tensor(flat),
        }
    }

    /// Overwrites `values` by those of process 0. All must have equally many.
    pub fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        match &self.link {
            Link::Alone => {}
            #[cfg(feature = "mpi")]
            Link::Mpi(world) => world.broadcast(values),
            #[cfg(feature = "nccl")]
            Link::Nccl(ring) => ring.broadcast(values)?,
        }
        let _ = values;
        Ok(())
    }

    /// From how much of each task is known in this process's part: the part's share of all that is known, task by task,
    /// and whether anything is.
    pub fn shares(&self, known: &[usize]) -> Result<Vec<(f64, bool)>> {
        let mut all: Vec<f64> = known.iter().map(|n| *n as f64).collect();
        self.sum(&mut all)?;
        Ok(known.iter().zip(all).map(|(own, all)| (*own as f64 / all.max(1.0), all > 0.0)).collect())
    }

    /// Does `work`. If it fails here, all processes end: the message is said here, with this process's number, and the
    /// launcher sees a failure.
    pub fn together<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.size == 1 {
            return work();
        }
        // A panic here must end the others too, which would wait for ever.
        let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(anyhow!("panicked, see above")));
        let done = done.with_context(|| format!("process {} of {}", self.rank, self.size));
        #[cfg(feature = "mpi")]
        if let (Link::Mpi(world), Err(error)) = (&self.link, &done) {
            world.abort(error);
        }
        #[cfg(feature = "nccl")]
        if let Link::Nccl(ring) = &self.link {
            ring.leave(done.as_ref().err());
        }
        done
    }
}

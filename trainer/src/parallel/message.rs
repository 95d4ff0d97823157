//! Processes on CPUs, over an installed MPI.

use anyhow::{Context, Result, ensure};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::Place;

/// All processes of an MPI program.
pub struct World {
    world: SimpleCommunicator,
    /// Ends MPI when dropped, so it goes last.
    _universe: Universe,
}

impl World {
    /// Joins them.
    pub fn join(place: &Place) -> Result<Self> {
        // Only this thread speaks; the loader's and the kernels' threads do not.
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled).context("MPI was started before")?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        ensure!(
            (rank, size) == (place.rank, place.size),
            "MPI says process {rank} of {size}, the environment {} of {}: start with the launcher of the MPI that this \
             program was built with",
            place.rank,
            place.size
        );
        Ok(Self { world, _universe: universe })
    }

    /// Adds `values` up over all.
    pub fn sum<T: Equivalence + Clone>(&self, values: &mut [T])
    where
        [T]: Buffer + BufferMut,
    {
        let own = values.to_vec();
        self.world.all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    /// Overwrites `values` by those of process 0.
    pub fn broadcast(&self, values: &mut [f32]) {
        self.world.process_at_rank(0).broadcast_into(values);
    }

    /// Says what went wrong and ends all processes.
    pub fn abort(&self, error: &anyhow::Error) -> ! {
        let message = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        eprintln!("trainer: {message}");
        self.world.abort(2)
    }
}

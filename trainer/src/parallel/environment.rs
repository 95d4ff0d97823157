//! Where a process stands among those that a launcher started.

use anyhow::{Context, Result, bail, ensure};

/// A process's place, as its launcher's variables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number among the processes of this machine: the GPU that it takes.
    pub local: usize,
    /// Host and port of process 0, where GPUs find each other; `None` where neither was given nor all are on one machine.
    pub master: Option<(String, u16)>,
}

/// The port where process 0 is found, unless MASTER_PORT says another.
const PORT: u16 = 29400;

impl Place {
    /// Reads the variables of torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), Open MPI (`OMPI_COMM_WORLD_*`) or Slurm's srun
    /// (`SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`), in this order, and `MASTER_ADDR` and `MASTER_PORT` of any.
    /// Nothing if there are none. Under torchrun the port is the one above `MASTER_PORT`, where torchrun itself listens.
    ///
    /// # Errors
    /// If a variable is missing beside another, or is no number in its range.
    pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let launchers = [
            ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
            [
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ],
            // A batch script outside of srun has SLURM_NTASKS too, but is one process: only steps have this size.
            ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
        ];
        let Some([rank, size, local, on_machine]) = launchers.into_iter().find(|names| variable(names[1]).is_some())
        else {
            return Ok(None);
        };
        let number = |name: &str| -> Result<usize> {
            let text = variable(name).with_context(|| format!("{size} is set, but {name} is not"))?;
            text.parse().with_context(|| format!("{name}={text}: is not a whole number"))
        };
        let place = Self { rank: number(rank)?, size: number(size)?, local: number(local)?, master: None };
        ensure!(place.rank < place.size, "{rank}={}: must be below {size}={}", place.rank, place.size);
        let port = match variable("MASTER_PORT") {
            None => PORT,
            Some(text) => text.parse().with_context(|| format!("MASTER_PORT={text}: is no port"))?,
        };
        // Under torchrun its own agent listens at this port already.
        let port = match variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() {
            Some("True") => port.checked_add(1).context("MASTER_PORT=65535: the port above is needed, too")?,
            _ => port,
        };
        let one_machine = variable(on_machine).as_deref() == Some(&place.size.to_string());
        let host = variable("MASTER_ADDR").or(one_machine.then(|| "127.0.0.1".to_owned()));
        Ok(Some(Self { master: host.map(|host| (host, port)), ..place }))
    }

    /// Reads this process's own variables; see [`find`](Self::find).
    pub fn of_process() -> Result<Option<Self>> {
        Self::find(|name| std::env::var(name).ok())
    }

    /// Host and port of process 0.
    ///
    /// # Errors
    /// If they are not known.
    pub fn master(&self) -> Result<&(String, u16)> {
        match &self.master {
            Some(master) => Ok(master),
            None => bail!("{} processes on several machines: set MASTER_ADDR to the host of process 0", self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::find(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_recognised() {
        assert_eq!(find(&[]).unwrap(), None);
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
        ];
        let place = find(&torchrun).unwrap().unwrap();
        let master = Some(("node0".to_owned(), 29500));
        assert_eq!(place, Place { rank: 3, size: 8, local: 1, master });

        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(find(&agent).unwrap().unwrap().master().unwrap().1, 29501);

        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let place = find(&open_mpi).unwrap().unwrap();
        assert_eq!(place.master().unwrap(), &("127.0.0.1".to_owned(), PORT));

        let slurm = [
            ("SLURM_NTASKS", "4"),
            ("SLURM_PROCID", "2"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
        ];
        let place = find(&slurm).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local), (2, 4, 0));
        assert!(place.master().unwrap_err().to_string().contains("MASTER_ADDR"));
        // A batch script outside of srun is one process.
        assert_eq!(find(&slurm[..2]).unwrap(), None);
    }

    #[test]
    fn incomplete_variables_are_named() {
        let text = |variables: &[(&str, &str)]| format!("{:#}", find(variables).unwrap_err());
        assert_eq!(text(&[("WORLD_SIZE", "2")]), "WORLD_SIZE is set, but RANK is not");
        let wrong = [("WORLD_SIZE", "2"), ("RANK", "2"), ("LOCAL_RANK", "0")];
        assert_eq!(text(&wrong), "RANK=2: must be below WORLD_SIZE=2");
        assert!(text(&[("WORLD_SIZE", "two"), ("RANK", "0")]).starts_with("WORLD_SIZE=two: is not a whole number"));
        let port = [("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "99999")];
        assert!(text(&port).starts_with("MASTER_PORT=99999: is no port"));
    }
}

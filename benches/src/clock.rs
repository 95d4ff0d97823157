//! What a process used so far.

use std::time::Duration;

/// Processor time of the whole process, all its threads together. Where the system is not Unix: the time since the first call.
pub fn cpu() -> Duration {
    #[cfg(unix)]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
        Duration::new(now.tv_sec.cast_unsigned(), nanoseconds)
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }
}

/// The most memory that the process held so far, in KiB (`VmHWM` of Linux); 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time_and_sleep_does_not() {
        let start = cpu();
        let mut x = 1u64;
        while cpu() - start < Duration::from_millis(20) {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005));
        }
        if cfg!(unix) {
            let start = cpu();
            std::thread::sleep(Duration::from_millis(50));
            // The other test of this process may work meanwhile, hence no tighter bound.
            assert!(cpu() - start < Duration::from_secs(5));
        }
    }

    #[test]
    fn peak_memory_is_known_on_linux() {
        assert_eq!(peak_memory() > 100, cfg!(target_os = "linux"));
    }
}

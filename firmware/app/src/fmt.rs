//! Log macros: defmt's where the firmware has a logger (feature `defmt`), nothing at all on a host.

#[cfg(feature = "defmt")]
macro_rules! info { ($($part:tt)*) => { ::defmt::info!($($part)*) }; }
#[cfg(feature = "defmt")]
macro_rules! warning { ($($part:tt)*) => { ::defmt::warn!($($part)*) }; }
#[cfg(feature = "defmt")]
macro_rules! error { ($($part:tt)*) => { ::defmt::error!($($part)*) }; }

// Without a logger the arguments are still borrowed, so that nothing becomes unused.
#[cfg(not(feature = "defmt"))]
macro_rules! nothing { ($format:literal $(, $argument:expr)* $(,)?) => {{ $(let _ = &$argument;)* }}; }
#[cfg(feature = "defmt")]
pub(crate) use {error, info, warning};
#[cfg(not(feature = "defmt"))]
pub(crate) use {nothing as info, nothing as warning, nothing as error};

/// Wraps what has `Display` so that defmt can print it with `{}`.
#[cfg(feature = "defmt")]
pub(crate) fn text<T: core::fmt::Display>(value: &T) -> defmt::Display2Format<'_, T> {
    defmt::Display2Format(value)
}

/// Wraps what has `Display` so that defmt can print it with `{}`.
#[cfg(not(feature = "defmt"))]
pub(crate) fn text<T: core::fmt::Display>(value: &T) -> &T {
    value
}

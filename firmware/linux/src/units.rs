//! Sizes in bytes as people write them.

/// Reads `65536`, `64KiB`, `1.5 MB`, ...: k, M and G are powers of 1000, Ki, Mi and Gi of 1024. Fractions of a byte are dropped.
///
/// # Errors
/// If it is not a number followed by `B`, `kB`, `MB`, `GB`, `KiB`, `MiB` or `GiB`, in any case, or by nothing.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 65536, 64KiB or 1.5MB");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(unit).ok_or_else(wrong);
    }
    match number.parse::<f64>() {
        Ok(number) if number * (unit as f64) < 9e15 => Ok((number * unit as f64) as u64),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("64KiB", 65536),
            ("64 kib", 65536),
            ("2kB", 2000),
            ("2k", 2000),
            ("1.5MB", 1_500_000),
            ("0.5MiB", 524_288),
            ("2GB", 2_000_000_000),
            ("1GiB", 1_073_741_824),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "64KB2", "1e9", "1.2.3", "18446744073709551615k", "x", "6 4", "NaN"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}

//! Says which of Cortex-M's instruction sets the target has: `nadir_dsp` (SMLAD and its kin) and `nadir_helium` (the vectors of M55 and M85).
//!
//! The compiler knows both as target features, but stable Rust shows neither to `cfg`. So the target's name and the `target-cpu`
//! among the compiler's flags decide. Without a `target-cpu` a thumbv8m target may lack both, and gets the scalar kernels.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(nadir_dsp)");
    println!("cargo::rustc-check-cfg=cfg(nadir_helium)");
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let cpu = flags.rsplit('\x1f').find_map(|flag| flag.trim_start_matches("-C").trim().strip_prefix("target-cpu="));
    let cpu = cpu.unwrap_or_default();
    let helium = target.starts_with("thumbv8") && matches!(cpu, "cortex-m55" | "cortex-m85");
    // The DSP extension is an option of Cortex-M33 and M35P; the compiler assumes that they have it.
    let dsp = helium
        || target.starts_with("thumbv7em")
        || target.starts_with("thumbv8") && matches!(cpu, "cortex-m33" | "cortex-m35p");
    // Link-time optimisation assembles functions of pure assembly again, by the target's name alone.
    let assembler = if target.starts_with("thumbv8") && dsp { format!(".cpu {cpu}") } else { String::new() };
    println!("cargo::rustc-env=NADIR_ASSEMBLER_CPU={assembler}");
    if dsp {
        println!("cargo::rustc-cfg=nadir_dsp");
    }
    if helium {
        println!("cargo::rustc-cfg=nadir_helium");
    }
}

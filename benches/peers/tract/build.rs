//! Tells the program which version of tract it was built with, as `Cargo.lock` has it.

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let after = lock.split("name = \"tract-onnx\"\nversion = \"").nth(1).unwrap_or("unknown\"");
    println!("cargo::rustc-env=TRACT_VERSION={}", after.split('"').next().unwrap_or("unknown"));
}

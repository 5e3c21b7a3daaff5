//! Pinfold's tools for the PC.

mod elf;
mod grammar;
mod image;
mod symbols;

use std::process::ExitCode;

const USAGE: &str = "\
usage: pinfold-tools image ELF OUT

  image ELF OUT   makes the bootable image OUT from the linked program ELF, with the table of function names in it
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["image", elf, out] => match image(elf, out) {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        ["--help" | "-h"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn image(elf: &str, out: &str) -> Result<String, String> {
    let bytes = std::fs::read(elf).map_err(|error| format!("cannot read {elf}: {error}"))?;
    let program = elf::Program::parse(&bytes).map_err(|error| format!("{elf}: {error}"))?;
    let table = symbols::table(&program.functions, program.code_end);
    let image = image::make(&program, &table).map_err(|error| format!("{elf}: {error}"))?;

    // By way of another name, so that OUT is never half an image.
    let partial = format!("{out}.{}", std::process::id());
    std::fs::write(&partial, &image)
        .and_then(|()| std::fs::rename(&partial, out))
        .map_err(|error| format!("cannot write {out}: {error}"))?;
    Ok(format!(
        "{out}: {} bytes, {} of them names of {} functions",
        image.len(),
        table.len(),
        program.functions.len()
    ))
}

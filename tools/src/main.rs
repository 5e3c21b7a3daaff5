//! Pinfold's tools for the PC.

mod block_map;
mod compare;
mod elf;
mod grammar;
mod image;
mod plot;
mod svg;
mod symbols;
mod trace;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: pinfold-tools image ELF OUT
       pinfold-tools bmap IMAGE OUT
       pinfold-tools compare LOGS TO ABOUT
       pinfold-tools trace DUMP OUT
       pinfold-tools plot FIGURES OUT

  image ELF OUT   makes the bootable image OUT from the linked program ELF, with the table of function names in it
  bmap IMAGE OUT  writes which blocks of the disk IMAGE hold anything, as bmaptool wants it
  compare LOGS TO ABOUT
                  writes TO/performance.md and TO/performance.svg from the logs in the folder LOGS; ABOUT says when and on what
  trace DUMP OUT  draws what `trace dump` printed as the SVG picture OUT
  plot FIGURES OUT
                  draws how figures grow as the SVG picture OUT, and prints their table in Markdown
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["image", elf, out] => tell(image(elf, out)),
        ["bmap", image, out] => tell(block_map::write(Path::new(image), Path::new(out))),
        ["compare", logs, to, about] => {
            tell(compare::compare(Path::new(logs), Path::new(to), about))
        }
        ["trace", dump, out] => tell(trace::trace(Path::new(dump), Path::new(out))),
        ["plot", figures, out] => tell(plot::plot(Path::new(figures), Path::new(out))),
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

fn tell(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
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

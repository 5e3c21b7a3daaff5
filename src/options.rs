//! What stands before the commands on the kernel command line.

use crate::driver::sdhci::Method;
use alloc::vec::Vec;
use log::LevelFilter;

/// The options, and the commands behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options<'a> {
    /// `log=LEVEL`.
    pub log: Option<LevelFilter>,
    /// `root=DISK`: the disk or partition to mount on `/`.
    pub root: Option<&'a str>,
    /// `sd=METHOD`: how blocks of SD cards are to be moved.
    pub sd: Option<Method>,
    /// `plain`: the console is no terminal.
    pub is_plain: bool,
    /// Words with `=` in them that are none of ours.
    pub unknown: Vec<&'a str>,
    /// What is left, to be run.
    pub commands: &'a str,
}

impl<'a> Options<'a> {
    /// Takes options off the beginning of `line`: the first word that is none begins the commands. What is for somebody
    /// else, `others` takes, and says how many bytes that is.
    pub fn parse(line: &'a str, mut others: impl FnMut(&'a str) -> Option<usize>) -> Self {
        let mut options = Self {
            log: None,
            root: None,
            sd: None,
            is_plain: false,
            unknown: Vec::new(),
            commands: line.trim(),
        };
        loop {
            let rest = options.commands;
            if let Some(len) = others(rest) {
                options.commands = rest[len..].trim_start();
                continue;
            }
            let word = rest.split_whitespace().next().unwrap_or_default();
            match word.split_once('=') {
                None if word == "plain" => options.is_plain = true,
                None if is_flag_for_linux(word) => {}
                None => return options,
                Some((name, value)) => match (name, value.parse()) {
                    ("log", Ok(level)) => options.log = Some(level),
                    ("root", _) => options.root = Some(disk_name(value)),
                    ("sd", _) if let Ok(method) = value.parse() => options.sd = Some(method),
                    _ if is_for_linux(name) => {}
                    _ => options.unknown.push(word),
                },
            }
            options.commands = rest[word.len()..].trim_start();
        }
    }
}

/// As Linux calls it, or as we do.
fn disk_name(value: &str) -> &str {
    value.strip_prefix("/dev/").unwrap_or(value)
}

/// Whether a Raspberry Pi's firmware or its owner may have put the option there for Linux and its modules.
fn is_for_linux(name: &str) -> bool {
    name.contains('.')
        || matches!(
            name,
            "console" | "coherent_pool" | "numa" | "numa_policy" | "rootfstype" | "rootdelay"
        )
}

fn is_flag_for_linux(word: &str) -> bool {
    matches!(word, "ro" | "rw" | "rootwait" | "quiet" | "splash")
}

#[cfg(test)]
mod tests {
    use super::Options;
    use alloc::string::String;
    use log::LevelFilter;
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    fn parse(line: &str) -> Options<'_> {
        Options::parse(line, |_| None)
    }

    #[test]
    fn what_is_for_others_is_theirs() {
        let options = Options::parse("A=1 log=off A=2 ls", |rest| {
            rest.starts_with("A=").then_some(3)
        });
        assert_eq!(
            (options.log, options.commands),
            (Some(LevelFilter::Off), "ls")
        );
        assert!(options.unknown.is_empty());
    }

    #[test]
    fn options_come_before_the_commands() {
        let options = parse(" log=debug  root=/dev/mmcblk0p2 plain frob=1 ls /; log=off ");
        assert_eq!(options.log, Some(LevelFilter::Debug));
        assert_eq!(options.root, Some("mmcblk0p2"));
        assert!(options.is_plain);
        assert_eq!(options.unknown, ["frob=1"]);
        assert_eq!(options.commands, "ls /; log=off");
    }

    #[test]
    fn what_a_pi_says_to_linux_is_passed_over() {
        let options = parse(
            "coherent_pool=1M 8250.nr_uarts=1 console=ttyS0,115200 root=PARTUUID=7d5a-02 \
             rootfstype=ext4 fsck.repair=yes rootwait quiet splash mem",
        );
        assert_eq!(options.root, Some("PARTUUID=7d5a-02"));
        assert!(options.unknown.is_empty());
        assert_eq!(options.commands, "mem");
    }

    #[test]
    fn a_level_that_is_none_is_told() {
        let options = parse("log=loud");
        assert_eq!((options.log, options.unknown), (None, ["log=loud"].into()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 2000 }))]

        /// Whatever firmware leaves there: nothing of it is lost but the options, and commands are kept as they are.
        #[test]
        fn any_line_is_options_and_commands(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let line = String::from_utf8_lossy(&bytes);
            let options = parse(&line);
            prop_assert!(line.trim_end().ends_with(options.commands));
            let again = parse(options.commands);
            prop_assert_eq!(again.commands, options.commands);
            prop_assert!(again.unknown.is_empty() && again.root.is_none() && again.log.is_none());
        }

        #[test]
        fn any_words_in_any_order(words in prop::collection::vec(
            prop::sample::select(&["log=info", "root=vda", "plain", "quiet", "=", "a=b", " ", "ls", "ü=ß", "log="]), 0..12,
        )) {
            let line = words.join(" ");
            let options = parse(&line);
            let first = words.iter().position(|word| *word == "ls");
            let commands = first.map_or(String::new(), |at| words[at..].join(" "));
            prop_assert_eq!(options.commands, commands.trim());
        }
    }
}

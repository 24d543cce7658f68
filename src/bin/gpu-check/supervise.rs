//! One worker at a time, watched: whatever an item does to its process, the others are done.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use schnell::{Error, Result};

use super::finding::{Finding, Row};
use super::items::Item;

/// Workers that may end one after the other without beginning an item: then the machine is gone.
const MAX_STILLBORN: usize = 3;
/// Until a worker has opened its machine.
const OPENING: Duration = Duration::from_secs(60);

/// Has all items done. `worker(first)` makes a process that does those from `first` on; `take` gets what it says, and a
/// row for each item that it did not end.
pub(super) fn supervise(
    items: &[Item],
    worker: &dyn Fn(usize) -> Command,
    take: &mut dyn FnMut(Finding) -> Result<()>,
) -> Result<()> {
    let (mut next, mut stillborn) = (0, 0);
    while next < items.len() {
        let mut process = Worker::start(worker(next))?;
        let (mut current, mut begun) = (None, false);
        let end = loop {
            let deadline = current.map_or(OPENING, |item: usize| items[item].deadline);
            match process.findings.recv_timeout(deadline) {
                Ok(finding) => {
                    match finding {
                        Finding::Begin(item) => (current, begun) = (Some(item), true),
                        Finding::Done(item) => (current, next) = (None, item + 1),
                        _ => {}
                    }
                    take(finding)?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    process.kill();
                    break format!("was killed: nothing was heard of it for {} s", deadline.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break process.end()?,
            }
        };
        stillborn = if begun { 0 } else { stillborn + 1 };
        if next == items.len() {
            break;
        }
        // A worker ends by itself behind an item after which its machine may be of no use.
        if let Some(item) = current {
            let fault = Row::fault(items[item].part, &items[item].name, format!("the process {end}"));
            take(Finding::Row(fault))?;
            take(Finding::Done(item))?;
            next = item + 1;
        } else if stillborn > MAX_STILLBORN {
            let fault = format!("given up, with all that would follow: the process {end} before it began");
            return take(Finding::Row(Row::fault(items[next].part, &items[next].name, fault)));
        }
    }
    Ok(())
}

struct Worker {
    child: Child,
    findings: Receiver<Finding>,
}

impl Worker {
    fn start(mut command: Command) -> Result<Worker> {
        let what = command.get_program().to_os_string();
        // A group of its own: compute-sanitizer has children, too.
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.map_err(Error::io("run", &what))?;
        let (sender, findings) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                    if let Some(finding) = Finding::parse(&line)
                        && sender.send(finding).is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(Worker { child, findings })
    }

    fn kill(&mut self) {
        let group = format!("-{}", self.child.id());
        // The shell's own kill, since a bare machine has no other.
        let _ = Command::new("sh").args(["-c", "kill -KILL \"$0\"", &group]).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, in words.
    fn end(&mut self) -> Result<String> {
        let status = self.child.wait().map_err(Error::io("wait for", "the worker"))?;
        Ok(format!("ended with {status}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Part;
    use super::super::items::Job;
    use super::*;

    /// Runs a shell script as the worker: `$0` is the first item. What was heard of the items, in short.
    fn heard(num_items: usize, script: &str) -> Vec<String> {
        let items: Vec<Item> = (0..num_items)
            .map(|i| Item {
                part: Part::Probe,
                name: format!("item {i}"),
                job: Job::Image,
                deadline: Duration::from_secs(1),
            })
            .collect();
        let worker = |first: usize| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(first.to_string());
            command
        };
        let mut heard = Vec::new();
        supervise(&items, &worker, &mut |finding| {
            match finding {
                Finding::Done(item) => heard.push(format!("done {item}")),
                Finding::Row(row) => heard.push(format!("{}: {}", row.case, row.fault.unwrap_or_default())),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
        heard
    }

    const DO: &str = r#"do_item() { echo "{\"begin\":$1}"; echo "{\"done\":$1}"; };"#;

    #[test]
    fn a_worker_that_does_all_is_the_only_one() {
        let script = format!("{DO} [ $0 = 0 ] || exit 9; for i in 0 1 2; do do_item $i; done");
        assert_eq!(heard(3, &script), ["done 0", "done 1", "done 2"]);
    }

    #[test]
    fn an_item_that_kills_its_worker_is_a_fault_and_the_rest_is_done() {
        let script = format!(
            "{DO} for i in 0 1 2; do [ $i -ge $0 ] || continue; \
             [ $i != 1 ] || {{ echo '{{\"begin\":1}}'; kill -SEGV $$; }}; do_item $i; done"
        );
        let heard = heard(3, &script);
        assert_eq!(heard[0], "done 0");
        assert!(heard[1].starts_with("item 1: the process ended with signal: 11"), "{}", heard[1]);
        assert_eq!(heard[2..], ["done 1", "done 2"]);
    }

    #[test]
    fn an_item_that_hangs_is_killed_with_its_children() {
        let script =
            format!("{DO} [ $0 = 0 ] || {{ do_item 1; exit; }}; echo '{{\"begin\":0}}'; sleep 1000 & wait");
        let heard = heard(2, &script);
        assert_eq!(heard[0], "item 0: the process was killed: nothing was heard of it for 1 s");
        assert_eq!(heard[1..], ["done 0", "done 1"]);
    }

    #[test]
    fn a_worker_may_end_between_items_but_not_for_ever() {
        let each = heard(6, &format!("{DO} do_item $0"));
        assert_eq!(each, [0, 1, 2, 3, 4, 5].map(|i| format!("done {i}")));
        let heard = heard(2, "exit 5");
        assert_eq!(heard.len(), 1);
        assert!(heard[0].contains("given up") && heard[0].contains("exit status: 5"), "{}", heard[0]);
    }
}

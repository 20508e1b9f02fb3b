// A training loop of three minutes, as the official TypeScript SDKs' clients drive it.
//
//     node training.mjs MODULES PYTHON SERVER RECORDINGS
//
// MODULES is a folder where npm installed `@modelcontextprotocol/sdk` and `@modelcontextprotocol/client`. Their requests end
// after 60 s. The server does not know these clients by name and answers after 50 s, so `execute` is answered before its cell
// ends, and `wait` has the rest. Beside each long loop, short ones in a server whose limit is 3 s are cancelled, interrupted,
// timed out and left behind. All of it runs at the same time. Every line is recorded for validate.py. Each check prints a line;
// the first that fails ends the run with exit 1.
import { createRequire } from 'node:module';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const [modules, python, server, recordings] = process.argv.slice(2).map((path) => resolve(path));
const require = createRequire(join(modules, 'package.json'));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = { ...(await load('@modelcontextprotocol/sdk/client/index.js')), ...(await load('@modelcontextprotocol/sdk/client/stdio.js')) };
const two = { ...(await load('@modelcontextprotocol/client')), ...(await load('@modelcontextprotocol/client/stdio')) };
const RECORD = join(dirname(fileURLToPath(import.meta.url)), 'record.py');
const MODES = [
    ['typescript-1', one, {}],
    ['typescript-2-legacy', two, { versionNegotiation: { mode: 'legacy' } }],
    ['typescript-2-auto', two, { versionNegotiation: { mode: 'auto' } }],
    ['typescript-2-modern', two, { versionNegotiation: { mode: { pin: '2026-07-28' } } }],
];
const EPOCHS = 180; // of the long loop, which prints a line a second
const EPOCHS_SHORT = 10;
const LIMIT = 50; // seconds of a call, of a client that the server does not know by name
const LIMIT_CLIENT = 60; // seconds, of these clients
const LIMIT_SHORT = 3;
const GONE_SECONDS_MAX = 2.5; // from the end of a session until nothing of it runs
const DEADLINE = 30; // seconds for anything that a short loop does
const folders = [];
let passed = 0;

process.on('SIGTERM', () => process.exit(143));
process.on('exit', () => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true, maxRetries: 5 })));

function check(what, good, came) {
    if (!good) {
        console.log(`FAILED: ${what}\n${JSON.stringify(came)}`);
        process.exit(1);
    }
    passed += 1;
    console.log(`  ok: ${what}`);
}

// A cell that prints a line a second. The file MARK-N says that line N is out.
const loop = (epochs, mark) => `import time
losses = []
for epoch in range(1, ${epochs + 1}):
    losses.append(1 / (2 * epoch + 1))
    print('epoch %d loss %.4f' % (epoch, losses[-1]))
    open('${mark}-%d' % epoch, 'w').close()
    time.sleep(1)
'the last loss is %.4f' % losses[-1]`;

const now = () => performance.now() / 1000;
const pause = () => new Promise((done) => setTimeout(done, 50));
const loss = (epoch) => (1 / (2 * epoch + 1)).toFixed(4);
const lines = (first, count) => Array.from({ length: count }, (_, index) => `epoch ${first + index} loss ${loss(first + index)}`);
const STILL_RUNS = /^\[mcp-py: cell \d+ still runs after [\d.]+ s and goes on by itself; wait shows the rest, interrupt stops it\]$/;
const KEYBOARD_INTERRUPT = String.raw`\[mcp-py: cell \d+ ended after [^\]]+\]\nTraceback (.*\n)+KeyboardInterrupt$`;
const INTERRUPTED = new RegExp(String.raw`^\[mcp-py: interrupted; the variables are kept\]\n${KEYBOARD_INTERRUPT}`);
const TIMED_OUT = new RegExp(String.raw`^\[mcp-py: interrupted after its timeout of 4 s; the variables are kept\]\n${KEYBOARD_INTERRUPT}`);
const ended = (epochs) => String.raw`\[mcp-py: cell \d+ ended after [^\]]+\]\n'the last loss is ${loss(epochs)}'`;

// The answers about one loop in the order that they came. No line may be missing, and none may come twice.
class Account {
    constructor(who) {
        this.who = who;
        this.lines = 0;
        this.cells = new Set();
    }

    // Checks the lines of an answer, and that what else it says matches a pattern and is about one cell.
    hear(what, text, rest) {
        const line = /epoch \d+ loss \d\.\d{4}/g;
        const came = text.match(line) ?? [];
        const wanted = lines(this.lines + 1, came.length);
        check(`${this.who}: ${what}: the next ${came.length} lines`, JSON.stringify(came) === JSON.stringify(wanted), text);
        this.lines += came.length;
        const said = text.replace(line, '').split('\n').filter((one) => one).join('\n');
        for (const [cell] of said.matchAll(/\bcell \d+/g)) this.cells.add(cell);
        check(`${this.who}: ${what}: its other lines`, rest.test(said) && this.cells.size <= 1, text);
    }

    close(epochs) {
        check(`${this.who}: ${epochs} lines in all`, this.lines === epochs, this.lines);
    }
}

// A client, its server, and a folder for both.
class Session {
    constructor(name, sdk, options, kind, env) {
        this.who = `${name}, ${kind}`;
        this.sdk = sdk;
        this.folder = mkdtempSync(join(tmpdir(), 'mcp-py-training-'));
        folders.push(this.folder);
        this.client = new sdk.Client({ name: 'interop', version: '1' }, { capabilities: {}, ...options });
        this.parameters = {
            command: python,
            args: [RECORD, join(recordings, `training-${name}-${kind}.jsonl`), server, 'server'],
            env: { HOME: this.folder, TMPDIR: this.folder, PATH: process.env.PATH, MCP_PY_PYTHON: python, ...env },
            cwd: this.folder,
        };
    }

    connect() {
        return this.client.connect(new this.sdk.StdioClientTransport(this.parameters));
    }

    mark(name) {
        return join(this.folder, name);
    }

    // The text of a result, and whether it is an error.
    async call(tool, given = {}, options = undefined) {
        const request = { name: tool, arguments: given };
        const more = this.sdk === one ? [undefined, options] : [options]; // the first wants a schema, too
        const result = await this.client.callTool(request, ...more);
        const texts = result.content.filter((block) => block.type === 'text').map((block) => block.text);
        return [texts.join(''), Boolean(result.isError)];
    }

    // A call that is cancelled when its loop has printed a line. `given` lets it wait until then, however slow this machine is.
    async cancelAt(name, epoch, tool, given) {
        const controller = new AbortController();
        const call = this.call(tool, given, { signal: controller.signal }).then(() => 'answered', () => 'aborted');
        await this.printed(name, epoch);
        controller.abort();
        const came = await call;
        check(`${this.who}: an aborted call of ${tool}`, came === 'aborted', came);
    }

    async printed(name, epoch) {
        const end = now() + DEADLINE;
        while (!existsSync(`${this.mark(name)}-${epoch}`)) {
            if (now() > end) check(`${this.who}: line ${epoch} of what is ${name}`, false, `not within ${DEADLINE} s`);
            await pause();
        }
    }

    // The variables are those of a loop that printed just these lines, and nothing is told again.
    async checkLosses(account) {
        const [text, error] = await this.call('execute', { code: 'len(losses)' });
        check(`${account.who}: the variables are there, and no more lines`, text === String(account.lines) && !error, text);
    }

    left() {
        const folders = readdirSync(this.folder).filter((entry) => entry.startsWith('python-interpreter-mcp-py-'));
        return [...processesWith(this.folder), ...folders];
    }

    async checkGone(since) {
        while (this.left().length && now() < since + GONE_SECONDS_MAX) await pause();
        check(`${this.who}: nothing is left after ${(now() - since).toFixed(1)} s`, this.left().length === 0, this.left());
    }
}

// The living processes that have a text in their environment.
function processesWith(text) {
    return readdirSync('/proc').filter((entry) => {
        try {
            return /^\d+$/.test(entry) && readFileSync(`/proc/${entry}/environ`).includes(text);
        } catch {
            return false; // it has ended, or is another user's
        }
    });
}

async function longLoop(session) {
    const account = new Account(session.who);
    const began = now();
    let [text, error] = await session.call('execute', { code: loop(EPOCHS, session.mark('long')) });
    const seconds = now() - began;
    check(`${session.who}: answered after ${LIMIT} s`, seconds >= LIMIT && !error, [seconds, text]);
    account.hear('execute', text, STILL_RUNS);
    check(`${session.who}: what was printed by then`, account.lines >= LIMIT - (LIMIT_CLIENT - LIMIT), text);
    let waits = 0;
    while (account.lines < EPOCHS) {
        waits += 1;
        [text, error] = await session.call('wait');
        check(`${session.who}: wait ${waits} is no error`, !error, text);
        account.hear(`wait ${waits}`, text, new RegExp(String.raw`^(\[mcp-py: cell 1 still runs: [^\]]+\]|${ended(EPOCHS)})$`));
    }
    check(`${session.who}: the last answer has the value`, new RegExp(`${ended(EPOCHS)}$`).test(text), text);
    check(`${session.who}: three waits`, waits === 3, waits);
    account.close(EPOCHS);
    await session.checkLosses(account);
    [text, error] = await session.call('wait');
    check(`${session.who}: one more wait has nothing to wait for`, text.startsWith('[mcp-py: nothing runs') && !error, text);
}

async function cancelled(session) {
    const account = new Account(`${session.who}, cancelled`);
    await session.cancelAt('cancelled', 2, 'execute', { code: loop(EPOCHS_SHORT, session.mark('cancelled')), wait: DEADLINE });
    const [text] = await session.call('execute', { code: 'len(losses)' });
    account.hear('the next answer', text, /^\[mcp-py: cell \d+ was cancelled; [^\]]*\]\n\d+$/);
    check(`${account.who}: what it had printed, and the variable`, text.endsWith(`\n${account.lines}`) && account.lines >= 2, text);
    await session.checkLosses(account);
}

async function waitCancelled(session) {
    const account = new Account(`${session.who}, its wait cancelled`);
    let [text] = await session.call('execute', { code: loop(EPOCHS_SHORT, session.mark('waited for')) });
    account.hear('execute', text, STILL_RUNS);
    await session.cancelAt('waited for', account.lines + 2, 'wait', { seconds: DEADLINE });
    [text] = await session.call('wait', { seconds: DEADLINE });
    account.hear('the next wait', text, new RegExp(`^${ended(EPOCHS_SHORT)}$`));
    account.close(EPOCHS_SHORT);
    await session.checkLosses(account);
}

async function interrupted(session) {
    const account = new Account(`${session.who}, interrupted`);
    let [text, error] = await session.call('execute', { code: loop(EPOCHS_SHORT, session.mark('interrupted')) });
    account.hear('execute', text, STILL_RUNS);
    await session.printed('interrupted', account.lines + 1);
    [text, error] = await session.call('interrupt');
    account.hear('interrupt', text, INTERRUPTED);
    check(`${account.who}: in the middle, and an error`, account.lines >= 3 && account.lines < EPOCHS_SHORT && error, text);
    await session.checkLosses(account);
}

async function timedOut(session) {
    const account = new Account(`${session.who}, timed out`);
    let [text, error] = await session.call('execute', { code: loop(EPOCHS_SHORT, session.mark('timed out')), timeout: 4 });
    account.hear('execute', text, STILL_RUNS);
    [text, error] = await session.call('wait');
    account.hear('wait', text, TIMED_OUT);
    check(`${account.who}: in the middle, and an error`, account.lines >= 2 && account.lines <= 5 && error, text);
    await session.checkLosses(account);
}

// Leaves a loop that goes on by itself.
async function leftBehind(session) {
    const [text, error] = await session.call('execute', { code: loop(EPOCHS_SHORT, session.mark('left behind')), wait: 1 });
    check(`${session.who}, left behind: the loop goes on`, text.includes('goes on by itself') && !error, text);
    await session.printed('left behind', 2);
}

async function run(session, scenarios) {
    await session.connect();
    for (const scenario of scenarios) await scenario(session);
    const toldToGo = now();
    await session.client.close();
    await session.checkGone(toldToGo);
}

mkdirSync(recordings, { recursive: true });
const short = [cancelled, waitCancelled, interrupted, timedOut, leftBehind];
await Promise.all(
    MODES.flatMap(([name, sdk, options]) => [
        run(new Session(name, sdk, options, 'long', {}), [longLoop]),
        run(new Session(name, sdk, options, 'short', { MCP_PY_WAIT: String(LIMIT_SHORT) }), short),
    ]),
);
console.log(`${passed} training checks passed`);
process.exit(0);

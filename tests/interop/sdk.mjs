// The official TypeScript SDKs' clients against the server, over stdio, in each of their modes.
//
//     node sdk.mjs MODULES PYTHON SERVER RECORDINGS
//
// MODULES is a folder where npm installed `@modelcontextprotocol/sdk` (legacy only) and `@modelcontextprotocol/client`
// (legacy, auto, pinned to 2026-07-28). Every line is recorded through record.py, for validate.py. Each check prints a
// line; the first that fails ends the run with exit 1 and says what came.
import { createRequire } from 'node:module';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const [modules, python, server, recordings] = process.argv.slice(2).map((path) => resolve(path));
const require = createRequire(join(modules, 'package.json'));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = { ...(await load('@modelcontextprotocol/sdk/client/index.js')), ...(await load('@modelcontextprotocol/sdk/client/stdio.js')) };
const two = { ...(await load('@modelcontextprotocol/client')), ...(await load('@modelcontextprotocol/client/stdio')) };
const TOOLS = ['execute', 'wait', 'interrupt', 'reset', 'list_vars', 'get_session_info', 'add_interpreter', 'stop_interpreter',
  'list_interpreters'];
const PICTURE = `
class P:
    def _repr_png_(self):
        import base64
        return base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
P()`;
let passed = 0;

function check(what, good, came) {
    if (!good) {
        console.log(`FAILED: ${what}\n${JSON.stringify(came)}`);
        process.exit(1);
    }
    passed += 1;
    console.log(`  ok: ${what}`);
}

const text = (result) => result.content.filter((block) => block.type === 'text').map((block) => block.text).join('');

async function session(name, sdk, options) {
    const folder = mkdtempSync(join(tmpdir(), 'mcp-py-sdk-'));
    const record = join(dirname(fileURLToPath(import.meta.url)), 'record.py');
    const parameters = {
        command: python,
        args: [record, join(recordings, `${name}.jsonl`), server, 'server'],
        env: { HOME: folder, TMPDIR: folder, PATH: process.env.PATH, MCP_PY_PYTHON: python },
        cwd: folder,
    };
    const connected = async () => {
        const client = new sdk.Client({ name: 'interop', version: '1' }, { capabilities: {}, ...options });
        await client.connect(new sdk.StdioClientTransport(parameters));
        return client;
    };
    let client = await connected();
    const call = (tool, given = {}, more = undefined) =>
        sdk === one ? client.callTool({ name: tool, arguments: given }, undefined, more) : client.callTool({ name: tool, arguments: given }, more);
    const execute = (code, given = {}, more = undefined) => call('execute', { code, ...given }, more);

    check(`${name}: the server names itself`, client.getServerVersion()?.name === 'python-interpreter', client.getServerVersion());
    const listed = await client.listTools();
    check(`${name}: nine tools, in order`, JSON.stringify(listed.tools.map((tool) => tool.name)) === JSON.stringify(TOOLS), listed);
    check(`${name}: 1 + 1 is 2`, text(await execute('1 + 1')) === '2');
    await execute('x = 5');
    check(`${name}: variables persist`, text(await execute('x * 2')) === '10');
    const failed = await execute("print('before')\n1/0");
    check(`${name}: an exception is an error with its output`, failed.isError && text(failed).startsWith('before\nTraceback'), failed);
    const picture = await execute(PICTURE);
    check(`${name}: a picture is an image block`, picture.content.some((block) => block.type === 'image' && block.mimeType === 'image/png'), picture);
    const info = (await call('get_session_info')).structuredContent;
    check(`${name}: structured results fit their schema`, info?.server_pid > 0 && info.version, info);
    const added = await call('add_interpreter', { name: 'second', python_path: python });
    check(`${name}: another interpreter`, added.structuredContent?.state === 'running', added);
    check(`${name}: runs cells`, text(await execute('6 * 7', { interpreter: 'second' })) === '42');
    const all = (await call('list_interpreters')).structuredContent.result;
    check(`${name}: both are listed`, ['builtin', 'second'].every((one) => all.some((entry) => entry.name === one)), all);

    const seen = [];
    const slow = "import time\nfor n in range(24):\n    print('step', n)\n    time.sleep(0.1)";
    await execute(slow, {}, { onprogress: (progress) => seen.push(progress) });
    check(`${name}: progress tells the last line`, seen.length > 0 && seen.every((one) => /step|running/.test(one.message)), seen);

    const late = await execute('z = 7\nwhile True: pass', { timeout: 0.5 });
    check(`${name}: a time-out says where`, late.isError && /timeout of 0.5 s.*line 2/s.test(text(late)), late);
    check(`${name}: and keeps the variables`, text(await execute('z')) === '7');
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 300);
    const began = Date.now();
    const ended = await execute('while True: pass', {}, { signal: controller.signal }).then(() => 'answered', () => 'aborted');
    check(`${name}: an aborted call`, ended === 'aborted', ended);
    check(`${name}: frees the interpreter`, text(await execute('z + 1')).endsWith('8') && Date.now() - began < 4000, Date.now() - began);
    const unknown = await call('no_such_tool').then((result) => result, (error) => error);
    check(`${name}: an unknown tool is an error`, unknown.code === -32602 || unknown.isError, unknown);
    await client.close();
    // The next server would take it away.
    const left = () => readdirSync(folder).filter((entry) => entry.startsWith('python-interpreter-mcp-py-'));
    for (let n = 0; n < 100 && left().length; n += 1) await new Promise((done) => setTimeout(done, 50));
    check(`${name}: nothing is left behind`, left().length === 0, left());

    parameters.args[1] = join(recordings, `${name}-again.jsonl`);
    client = await connected();
    check(`${name}: a new connection is a new session`, text(await execute("'x' in globals()")) === 'False');
    await client.close();
    rmSync(folder, { recursive: true, force: true });
}

mkdirSync(recordings, { recursive: true });
await session('typescript-1', one, {});
await session('typescript-2-legacy', two, { versionNegotiation: { mode: 'legacy' } });
await session('typescript-2-auto', two, { versionNegotiation: { mode: 'auto' } });
await session('typescript-2-modern', two, { versionNegotiation: { mode: { pin: '2026-07-28' } } });
console.log(`${passed} TypeScript checks passed`);
process.exit(0);

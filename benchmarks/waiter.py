"""Says yes, late: nginx asks this before it answers a request, which is how a server on loopback gets far away.

``python -m benchmarks.waiter PORT SECONDS``: ``GET /<n>`` is answered after ``n`` times as many seconds.
"""

import asyncio
import sys

__all__ = ["main"]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trip: float) -> None:
    try:
        while request := await reader.readline():
            while (await reader.readline()).strip():
                pass
            await asyncio.sleep(int(request.split()[1].lstrip(b"/")) * trip)
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
            break
    except (ConnectionError, ValueError):
        pass  # a connection that only looked whether somebody is there
    finally:
        writer.close()


async def main(port: int, trip: float) -> None:
    """Serve until this process is ended."""
    server = await asyncio.start_server(lambda reader, writer: _answer(reader, writer, trip), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))

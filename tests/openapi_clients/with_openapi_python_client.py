# mypy: ignore-errors
"""The same as with_openapi_typescript.ts, with the client of openapi-python-client. It lies in `taskpool_client`."""

from __future__ import annotations

import json
import sys
from typing import Any

from taskpool_client import Client
from taskpool_client.api.tasks import get_task, list_tasks, stop_task, submit_batch, submit_task
from taskpool_client.models import (
    AreaPayload,
    AreaTask,
    Batch,
    Cat,
    Circle,
    Colour,
    Dog,
    Item,
    MailAddress,
    MailPayload,
    MailTask,
    Node,
    OrderPayload,
    OrderTask,
    ParcelsSendAddress,
    ParcelsSendPayload,
    ParcelsSendTask,
    Stop,
    Task,
    TreeCountPayload,
    TreeCountTask,
    UntilStoppedPayload,
    UntilStoppedTask,
)

client: Any = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)


def ended(id: str) -> Task:
    found = get_task.sync(id, client=client, wait=30)
    assert isinstance(found, Task), found
    return found


parcel = ParcelsSendPayload(to=ParcelsSendAddress(street="Lane", colour=Colour.BLUE))
tree = Node(name="root", children=[Node(name="leaf", children=[Node(name="last")])])
order = OrderPayload(items=[Item(name="hat")], pet=Dog(kind="dog", friend=Cat(kind="cat")))

sent: Any = submit_task.sync(client=client, body=ParcelsSendTask(type_="parcels.send", payload=parcel))
batch: Any = submit_batch.sync(
    client=client,
    body=Batch(
        tasks=[
            TreeCountTask(type_="tree.count", payload=TreeCountPayload(root=tree)),
            AreaTask(type_="area", payload=AreaPayload(shape=Circle(type_="circle", radius=2))),
            OrderTask(type_="order", payload=order),
            MailTask(type_="mail", payload=MailPayload(to=MailAddress(mailbox="me"))),
        ]
    ),
)
endless: Any = submit_task.sync(
    client=client, body=UntilStoppedTask(type_="until_stopped", payload=UntilStoppedPayload())
)
stop_task.sync(endless.id, client=client, body=Stop(grace_s=5))

tasks = [ended(sent.id), *[ended(each.id) for each in batch.tasks]]
stopped = ended(endless.id)
listed: Any = list_tasks.sync(client=client, type_="parcels.send")


def plain(value: Any) -> Any:
    """The generated classes of free objects have their members in `additional_properties`."""
    return getattr(value, "additional_properties", value)


print(
    json.dumps(
        {
            "results": [plain(each.result) for each in tasks],
            "statuses": [each.status for each in [*tasks, stopped]],
            "listed": any(each.id == sent.id for each in listed.tasks),
        }
    )
)

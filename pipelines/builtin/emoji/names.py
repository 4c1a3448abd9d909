"""What the `emoji` model draws: a name that people say first, and the character whose pictures it has seen."""

from typing import Final

STYLES: Final = ("fluent", "noto")
"""Microsoft's Fluent Emoji (3D) and Google's Noto Emoji."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.replace("\n", " ").split(","))


_THINGS: Final = _listed("""
🐵 monkey, 🐶 dog, 🦊 fox, 🐱 cat, 🦁 lion, 🐯 tiger, 🐴 horse, 🦄 unicorn, 🦓 zebra, 🐮 cow, 🐷 pig,
🐑 sheep, 🐫 camel, 🦒 giraffe, 🐘 elephant, 🐭 mouse, 🐰 rabbit, 🦇 bat, 🦔 hedgehog, 🐻 bear,
🐨 koala, 🐼 panda, 🦘 kangaroo, 🐔 chicken, 🐥 chick, 🐧 penguin, 🦆 duck, 🦉 owl, 🦩 flamingo,
🦚 peacock, 🦜 parrot, 🐸 frog, 🐊 crocodile, 🐢 turtle, 🐍 snake, 🐲 dragon, 🦖 dinosaur, 🐳 whale,
🐟 fish, 🦈 shark, 🐙 octopus, 🐚 shell, 🪼 jellyfish, 🦀 crab, 🐌 snail, 🦋 butterfly, 🐝 bee,
🐞 ladybug, 🕷️ spider,

🌸 cherry blossom, 🌹 rose, 🌻 sunflower, 🌷 tulip, 🌳 tree, 🌴 palm tree, 🌵 cactus,
🍀 four leaf clover, 🍁 maple leaf, 🍄 mushroom,

🍇 grapes, 🍉 watermelon, 🍊 orange, 🍋 lemon, 🍌 banana, 🍍 pineapple, 🍎 apple, 🍐 pear,
🍒 cherries, 🍓 strawberry, 🥝 kiwi, 🍅 tomato, 🥑 avocado, 🍆 eggplant, 🥕 carrot, 🌽 corn,
🥦 broccoli, 🍞 bread, 🥐 croissant, 🥨 pretzel, 🥞 pancakes, 🧀 cheese, 🍔 hamburger, 🍟 fries,
🍕 pizza, 🌭 hot dog, 🌮 taco, 🍳 fried egg, 🥗 salad, 🍿 popcorn, 🍣 sushi, 🍝 spaghetti,
🍦 ice cream, 🍩 doughnut, 🍪 cookie, 🎂 birthday cake, 🧁 cupcake, 🍫 chocolate, 🍭 lollipop,
🍯 honey, ☕ coffee, 🫖 teapot, 🍷 wine, 🍸 cocktail, 🍺 beer, 🧋 bubble tea,

🌎 globe, 🏔️ mountain, 🌋 volcano, 🏝️ island, 🏠 house, 🏰 castle, ⛪ church, ⛺ tent,
🎡 ferris wheel,

🚂 locomotive, 🚆 train, 🚌 bus, 🚑 ambulance, 🚒 fire engine, 🚓 police car, 🚕 taxi, 🚗 car,
🚜 tractor, 🏍️ motorcycle, 🚲 bicycle, 🛹 skateboard, 🚦 traffic light, ⚓ anchor, ⛵ sailboat,
🚢 ship, ✈️ airplane, 🚁 helicopter, 🚀 rocket, 🛸 UFO,

🌕 full moon, 🌙 crescent moon, ☀️ sun, 🪐 planet, ⭐ star, ☁️ cloud, 🌧️ rain, 🌪️ tornado,
🌈 rainbow, ☂️ umbrella, ⚡ lightning, ❄️ snowflake, ⛄ snowman, 🔥 fire, 💧 droplet, 🌊 wave,

🎃 pumpkin, 🎄 Christmas tree, 🎈 balloon, 🎁 gift, 🏆 trophy, 🏅 medal, ⚽ soccer ball, ⚾ baseball,
🏀 basketball, 🏐 volleyball, 🏈 football, 🎾 tennis, 🥊 boxing glove, 🎯 dartboard, 🪁 kite,
🔮 crystal ball, 🎲 die, 🧸 teddy bear, 🎨 palette, 🧶 yarn, 🎸 guitar, 🎹 piano, 🎺 trumpet,
🎻 violin, 🥁 drum, 🎷 saxophone, 🔔 bell, 🎤 microphone, 🎧 headphones,

👓 glasses, 🕶️ sunglasses, 👔 necktie, 👕 t-shirt, 👖 jeans, 🧣 scarf, 🧤 gloves, 🧦 socks, 👗 dress,
👜 handbag, 🎒 backpack, 👟 sneaker, 👠 high heel, 👑 crown, 🎩 top hat, 🧢 cap, 💄 lipstick, 💍 ring,
💎 gem,

📱 phone, ☎️ telephone, 💻 laptop, 📺 television, 📷 camera, 🔍 magnifying glass, 🕯️ candle,
💡 light bulb, 🏮 lantern, 📚 books, 📜 scroll, 💰 money bag, ✉️ envelope, 📫 mailbox, ✏️ pencil,
✂️ scissors, 🔒 lock, 🔑 key, 🔨 hammer, 🪓 axe, 💣 bomb, 🏹 bow and arrow, ⚙️ gear, 🧲 magnet,
🔬 microscope, 💊 pill, 🚪 door, 🛏️ bed, 🛋️ couch, 🪑 chair, 🚽 toilet, 🛁 bathtub, 🧹 broom,
🛒 shopping cart, ⏰ alarm clock, ⌛ hourglass, ⌚ watch,

😀 smiling face, 😍 face in love, 😎 cool face, 😭 crying face, 😡 angry face, 😴 sleeping face,
💀 skull, 🤡 clown, 👻 ghost, 👽 alien, 🤖 robot, ❤️ heart, 💔 broken heart, 🧠 brain, 🦷 tooth,
🦴 bone, 👁️ eye, 👍 thumbs up
""")
NAMES: Final[dict[str, str]] = {name: character for character, name in (entry.split(maxsplit=1) for entry in _THINGS)}
"""Name → character: animals, plants, food, places, vehicles, weather, play, clothes, things, faces."""

WITHOUT_ARTICLE: Final = frozenset(
    _listed("""
    grapes, cherries, corn, broccoli, bread, pancakes, cheese, fries, salad, popcorn, sushi, spaghetti, chocolate,
    honey, coffee, wine, beer, bubble tea, rain, lightning, fire, tennis, yarn, headphones, glasses, sunglasses,
    jeans, gloves, socks, books, scissors, thumbs up
    """)
)
"""Plurals, and what people do not count."""

LEFT_AS_DRAWN: Final = frozenset(
    _listed("""
    globe, bus, ambulance, fire engine, police car, taxi, die, piano, telephone, alarm clock, watch
    """)
)
"""Pictures with letters, digits, keys or a map, which a mirror would make wrong."""


def with_article(name: str) -> str:
    """The shortest thing that a user types: "a cat", "an apple", "grapes"."""
    if name in WITHOUT_ARTICLE:
        return name
    return f"an {name}" if name[0] in "aeio" or name in {"umbrella", "hourglass"} else f"a {name}"
